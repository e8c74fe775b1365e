//! `attn export`: a plan for other hosts, as a table and as JSON.

mod common;

use common::attn;

#[test]
fn the_plan_as_json() {
    let plan = attn(&["export", "--shape", "1,2,2,300,300,16", "--backward", "--causal", "--json"]).ok().json();
    let list = |name: &str| plan[name].as_array().expect("a list").clone();
    let (tensors, kernels, dispatches) = (list("tensors"), list("kernels"), list("dispatches"));
    assert_eq!(plan["version"], 1);
    assert_eq!(plan["options"][0], "causal=bottom-right");
    assert_eq!(plan["requires"]["features"].as_array().map(Vec::len), Some(0));
    assert!(kernels.len() >= 2 && dispatches.len() >= kernels.len(), "dK and dV, and dQ");
    for kernel in &kernels {
        let text = kernel["wgsl"].as_str().expect("a text");
        assert!(text.contains("fn main(") && kernel["directives"] == "" && kernel["entryPoint"] == "main");
        let last = kernel["files"].as_array().expect("files").last().expect("a file")["line"].as_u64().expect("a line");
        assert!(last as usize <= text.lines().count());
    }
    let names: Vec<&str> = tensors.iter().filter_map(|tensor| tensor["name"].as_str()).collect();
    assert_eq!(names, ["query", "key", "value", "output", "d_output", "stats", "d_query", "d_key", "d_value"]);
    for dispatch in &dispatches {
        assert!(dispatch["kernel"].as_u64().expect("an index") < kernels.len() as u64);
        assert!(dispatch["params"].as_array().expect("bytes").len().is_multiple_of(16));
        for binding in dispatch["bindings"].as_array().expect("bindings") {
            let known = match (&binding["buffer"], binding["buffer"].as_u64()) {
                (_, Some(scratch)) => scratch < list("scratch").len() as u64,
                (name, None) => name == "params" || names.iter().any(|tensor| name == tensor),
            };
            assert!(known, "{binding}");
        }
    }
}

#[test]
fn what_a_device_must_have() {
    let told = attn(&["export", "--shape", "1,2,2,64,64,16", "--lse"]).ok();
    for word in ["query", "f32 [1, 2, 64, 16]", "lse", "f32 [1, 2, 64]", "maxComputeInvocationsPerWorkgroup", "workgroups"] {
        assert!(told.out.contains(word), "{word}: {}", told.out);
    }
    let plan = attn(&["export", "--subgroups", "32", "--json"]).ok().json();
    assert_eq!(plan["requires"]["features"][0], "subgroups");
    assert!(plan["kernels"][0]["directives"].as_str().expect("a text").contains("enable subgroups;"));
    let few = attn(&["export", "--limit", "maxComputeInvocationsPerWorkgroup=64", "--json"]).ok().json();
    assert!(few["requires"]["limits"]["maxComputeInvocationsPerWorkgroup"].as_u64().expect("a number") <= 64);
}

#[test]
fn bad_requests() {
    attn(&["export", "--limit", "maxBindGroups=4"]).refused(&["--limit maxBindGroups=4", "maxBufferSize"]);
    attn(&["export", "--limit", "maxBufferSize=big"]).refused(&["--limit maxBufferSize=big", "number"]);
    attn(&["export", "--limit", "maxBufferSize=16"]).refused(&["max_buffer_size"]);
}
