//! Each rule is tested with a small shader that breaks it and with a correct variant that does not.

use wgpu_attention_simulator::{Binding, Buffer, Error, LaneOrder, Options, Report, Rule, Shader};

const SIZE: usize = 4096;

/// Runs a shader with the buffers `input` (binding 0, numbers from 0 on) and `output` (binding 1, unwritten).
fn run(body: &str, workgroups: u32, options: &Options) -> (Report, Buffer) {
    let text = format!(
        "@group(0) @binding(0) var<storage, read> input: array<u32>;\n\
         @group(0) @binding(1) var<storage, read_write> output: array<u32>;\n{body}"
    );
    let shader = Shader::new(&text).unwrap_or_else(|error| panic!("{error}"));
    let numbers: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    let mut buffers = [Buffer::filled(&numbers), Buffer::unwritten(SIZE, 0)];
    let bindings = [0, 1].map(|at| Binding { binding: at as u32, buffer: at, offset: 0, size: SIZE });
    let report = shader.dispatch(&mut buffers, &bindings, [workgroups, 1, 1], options).expect("it runs");
    let [_, output] = buffers;
    (report, output)
}

/// Returns the rules that a shader breaks at one of four seeds.
fn rules(body: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    for seed in 0..4 {
        let options = Options { subgroup_size: 8, seed, ..Options::default() };
        rules.extend(run(body, 2, &options).0.findings.into_iter().map(|finding| finding.rule));
    }
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// Returns the text of an entry point with 32 threads.
fn main_of(statements: &str) -> String {
    format!(
        "var<workgroup> tile: array<u32, 32>;\n\
         var<workgroup> vectors: array<vec4<u32>, 32>;\n\
         var<workgroup> counter: atomic<u32>;\n\
         @compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32, @builtin(workgroup_id) group: vec3<u32>,\n\
             @builtin(subgroup_invocation_id) lane: u32, @builtin(subgroup_size) size: u32, @builtin(subgroup_id) subgroup: u32) {{\n\
         let own = group.x * 32u + i;\n{statements}\n}}"
    )
}

#[test]
fn each_rule_has_a_shader_that_breaks_it_and_one_that_does_not() {
    let cases: &[(&str, &[Rule])] = &[
        // Workgroup memory.
        ("tile[i] = i; workgroupBarrier(); output[own] = tile[31u - i];", &[]),
        ("tile[i] = i; output[own] = tile[31u - i];", &[Rule::Race]),
        ("tile[i] = i; storageBarrier(); output[own] = tile[31u - i];", &[Rule::Race]),
        ("tile[0] = i; output[own] = i;", &[Rule::Race]),
        ("tile[i] = i; output[own] = tile[i];", &[]),
        ("vectors[i / 4u][i % 4u] = i; output[own] = i;", &[Rule::Race]),
        ("vectors[i][i % 4u] = i; output[own] = vectors[i][i % 4u];", &[]),
        // Buffers, within a workgroup and across workgroups.
        ("output[own] = i;", &[]),
        ("output[i] = i;", &[Rule::Race]),
        ("output[own] = i; workgroupBarrier(); output[64u + own] = output[group.x * 32u + 31u - i];", &[Rule::Race]),
        // Atomics.
        ("if i == 0u { atomicStore(&counter, 0u); } workgroupBarrier(); atomicAdd(&counter, 1u); output[own] = i;", &[]),
        (
            "if i == 0u { atomicStore(&counter, 0u); } atomicMax(&counter, i); workgroupBarrier(); output[own] = atomicLoad(&counter);",
            &[Rule::UnorderedAtomic],
        ),
        // Uninitialised memory is reported only where it matters.
        ("output[own] = tile[i];", &[Rule::Uninitialised]),
        ("let unused = tile[i] + 1u; output[own] = select(unused, 7u, i < 32u);", &[]),
        ("if tile[i] == 3u { output[own] = 1u; } else { output[own] = 2u; }", &[Rule::Uninitialised]),
        ("var x: array<u32, 4>; output[own] = x[i % 4u];", &[]),
        ("tile[i] = output[own]; workgroupBarrier(); output[own] = tile[i];", &[Rule::Uninitialised]),
        // Bounds.
        ("output[own] = input[own];", &[]),
        ("output[own] = input[own + 60u];", &[Rule::OutOfBounds]),
        ("tile[i] = i; output[own] = tile[i & 31u];", &[]),
        ("tile[i + 1u] = i; output[own] = i;", &[Rule::OutOfBounds]),
        ("var x: array<u32, 4>; output[own] = x[i];", &[Rule::OutOfBounds]),
        ("let v = vec4<u32>(i); output[own] = v[i % 5u];", &[Rule::OutOfBounds]),
        // Uniformity.
        ("output[own] = i; if input[group.x] < 99u { workgroupBarrier(); }", &[]),
        ("output[own] = i; if input[i] < 16u { workgroupBarrier(); }", &[Rule::NonUniformBarrier]),
        ("output[own] = i; for (var n = 0u; n < input[i]; n++) { workgroupBarrier(); }", &[Rule::NonUniformBarrier]),
        ("output[own] = i; if input[i] > 3u { return; } workgroupBarrier();", &[Rule::NonUniformBarrier]),
        // Subgroups of 8.
        ("output[own] = subgroupAdd(i);", &[]),
        ("output[own] = i; if input[subgroup] > 0u { output[own] = subgroupAdd(i); }", &[]),
        ("output[own] = i; if input[lane] > 0u { output[own] = subgroupAdd(i); }", &[Rule::NonUniformSubgroup]),
        ("output[own] = subgroupShuffleXor(i, 7u);", &[]),
        ("output[own] = subgroupShuffleXor(i, 8u);", &[Rule::Uninitialised, Rule::NoSuchLane]),
        ("output[own] = subgroupShuffle(i, (lane + 1u) % size);", &[]),
        ("output[own] = subgroupShuffle(i, lane + 1u);", &[Rule::Uninitialised, Rule::NoSuchLane]),
        // Arithmetic without a defined result.
        ("output[own] = 1u << (input[i] % 32u);", &[]),
        ("output[own] = 1u << (input[i] + 1u);", &[Rule::Shift]),
        ("output[own] = 7u / (input[i] + 1u);", &[]),
        ("output[own] = 7u % input[i];", &[Rule::Division]),
        ("output[own] = u32(f32(input[i]) * 1e8);", &[]),
        ("output[own] = u32(f32(input[i]) * 1e9);", &[Rule::Conversion]),
        ("output[own] = u32(-f32(input[i]) / 32.0);", &[]),
        ("output[own] = pack2x16float(vec2<f32>(f32(input[i]) * 1e3, 0.0));", &[]),
        ("output[own] = pack2x16float(vec2<f32>(f32(input[i]) * 1e4, 0.0));", &[Rule::Conversion]),
    ];
    for (statements, expected) in cases {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(rules(&main_of(statements)), expected, "{statements}");
    }
}

#[test]
fn endless_loops_end() {
    let options = Options { most_iterations: 1000, ..Options::default() };
    let body = main_of("var n = 0u; while input[i] < 99u { n++; } output[own] = n;");
    let (report, _) = run(&body, 1, &options);
    assert_eq!(report.findings[0].rule, Rule::EndlessLoop);
}

#[test]
fn a_finding_has_both_lines() {
    let body = main_of("tile[i] = i;\noutput[own] = tile[31u - i];");
    let (report, _) = run(&body, 1, &Options::default());
    let race = report.findings.iter().find(|finding| finding.rule == Rule::Race).expect("a race");
    // Two lines of buffers and six of `main_of` precede the two statements.
    let mut lines = [race.line, race.other.unwrap_or(0)];
    lines.sort_unstable();
    assert_eq!(lines, [9, 10], "{race}");
    assert!(race.to_string().starts_with(&format!("line {}: data race: word", race.line)), "{race}");
}

#[test]
fn lanes_are_shuffled_and_the_last_subgroup_may_be_partial() {
    let body = main_of("output[own] = subgroupBroadcastFirst(i) * 65536u + subgroup * 256u + lane;");
    for (size, lanes) in [(8, LaneOrder::InOrder), (8, LaneOrder::Shuffled), (24, LaneOrder::Shuffled)] {
        let options = Options { subgroup_size: size, lanes, seed: 3, ..Options::default() };
        let (report, output) = run(&body, 1, &options);
        assert_eq!(report.findings, [], "subgroups of {size}");
        let words: Vec<u32> = output.bytes().chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        let in_order = (0..32u32).all(|i| words[i as usize] & 0xffff == i / size * 256 + i % size);
        assert_eq!(in_order, lanes == LaneOrder::InOrder);
        let mut places: Vec<u32> = words[..32].iter().map(|word| word & 0xffff).collect();
        places.sort_unstable();
        assert!(places.iter().copied().eq((0..32).map(|i| i / size * 256 + i % size)), "{places:?}");
        let firsts = |subgroup: u32| words[..32].iter().filter(move |&&word| word >> 8 & 0xff == subgroup).map(|word| word >> 16);
        assert!(firsts(0).all(|first| Some(first) == firsts(0).next()), "one invocation is a subgroup's first");
    }
}

#[test]
fn the_order_of_invocations_follows_the_seed() {
    let body = main_of("if i == 0u { atomicStore(&counter, 0u); } workgroupBarrier(); output[own] = atomicAdd(&counter, 1u);");
    let bytes = |seed| run(&body, 1, &Options { seed, ..Options::default() }).1.bytes();
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn loops_and_statements_are_counted() {
    let body = main_of("var n = 0u;\nfor (var k = 0u; k < i; k++) {\nn += k;\n}\nif false {\noutput[0] = 1u;\n}\noutput[own] = n;");
    let text = format!(
        "@group(0) @binding(0) var<storage, read> input: array<u32>;\n\
         @group(0) @binding(1) var<storage, read_write> output: array<u32>;\n{body}"
    );
    let shader = Shader::new(&text).expect("it is valid");
    let (report, _) = run(&body, 1, &Options::default());
    // The last iteration only ends the loop.
    assert_eq!((report.iterations, report.loops), (32, vec![(10, 32)]));
    let dead: Vec<u32> = shader.lines().filter(|&(_, reachable)| !reachable).map(|(line, _)| line).collect();
    assert!(!dead.is_empty() && dead.iter().all(|&line| line == 14), "{dead:?}");
    assert!(shader.lines().zip(&report.covered).all(|((_, reachable), &ran)| reachable == (ran > 0)));
}

#[test]
fn wrong_bindings_are_errors() {
    let shader =
        Shader::new("@group(0) @binding(3) var<storage, read_write> x: array<u32>; @compute @workgroup_size(1) fn main() { x[0] = 1u; }")
            .expect("it is valid");
    let mut buffers = [Buffer::unwritten(16, 0)];
    let bind = |binding, buffer, offset| [Binding { binding, buffer, offset, size: 16 }];
    for bindings in [bind(2, 0, 0), bind(3, 1, 0), bind(3, 0, 2), bind(3, 0, 20)] {
        let result = shader.dispatch(&mut buffers, &bindings, [1, 1, 1], &Options::default());
        assert!(matches!(result, Err(Error::Bindings(_))), "{bindings:?}");
    }
    assert!(shader.dispatch(&mut buffers, &bind(3, 0, 0), [1, 1, 1], &Options::default()).is_ok());
    let wide = Options { subgroup_size: 129, ..Options::default() };
    assert!(matches!(shader.dispatch(&mut buffers, &bind(3, 0, 0), [1, 1, 1], &wide), Err(Error::Unsupported(_))));
    assert!(matches!(Shader::new("fn main( {"), Err(Error::Shader(_))));
}
