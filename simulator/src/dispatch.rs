//! Dispatches: the workgroups of a grid run one after another, in an order drawn from the seed.

use naga::BuiltIn;

use crate::Error;
use crate::coverage;
use crate::lower::lower;
use crate::machine::{Machine, Parts, Range};
use crate::memory::Buffer;
use crate::program::{Declared, Program};
use crate::report::{Finding, Findings};
use crate::subgroup::{LaneOrder, Subgroups};

/// Compute shader with one entry point, ready to run.
#[derive(Debug)]
pub struct Shader {
    program: Program,
    /// True for each statement that can be reached.
    reachable: Vec<bool>,
}

/// Properties of the simulated device.
#[derive(Clone, Debug)]
pub struct Options {
    /// Lanes of a subgroup, 1 to 128.
    pub subgroup_size: u32,
    /// Order of the lanes.
    pub lanes: LaneOrder,
    /// Seed of all orders that are left open: of invocations, branches and workgroups.
    pub seed: u64,
    /// Maximum number of iterations of a loop in an invocation; with more, the loop counts as endless.
    pub most_iterations: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { subgroup_size: 32, lanes: LaneOrder::default(), seed: 0, most_iterations: 10_000_000 }
    }
}

/// Range of a buffer that is bound in group 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// `@binding`.
    pub binding: u32,
    /// Index of the buffer.
    pub buffer: usize,
    /// First byte; a multiple of 4.
    pub offset: usize,
    /// Size in bytes; cut off at the end of the buffer.
    pub size: usize,
}

/// Result of a dispatch.
#[derive(Clone, Debug)]
pub struct Report {
    /// Findings, sorted by line.
    pub findings: Vec<Finding>,
    /// Maximum over all invocations of the iterations of all loops together.
    pub iterations: u64,
    /// Line of each loop, and the maximum over all invocations of its iterations. A compiler may unroll loops with a
    /// constant number of iterations.
    pub loops: Vec<(u32, u64)>,
    /// Number of times that each statement ran; [`Shader::lines`] has the lines.
    pub covered: Vec<u64>,
}

/// Poison in workgroup memory: a NaN as f32, out of bounds as an index.
const POISON: u32 = u32::MAX;

impl Shader {
    /// Parses, validates and prepares a shader.
    pub fn new(text: &str) -> Result<Self, Error> {
        let program = lower(text)?;
        let reachable = coverage::reachable(&program);
        Ok(Self { program, reachable })
    }

    /// Returns the line of each statement, and true if it can be reached. A statement behind a constant condition or in
    /// a function that nobody calls cannot.
    pub fn lines(&self) -> impl Iterator<Item = (u32, bool)> {
        self.program.lines.iter().copied().zip(self.reachable.iter().copied())
    }

    /// Returns the buffers that the shader declares.
    pub fn declared(&self) -> &[Declared] {
        &self.program.buffers
    }

    /// Returns the number of invocations per workgroup along x, y and z.
    pub fn workgroup_size(&self) -> [u32; 3] {
        self.program.workgroup_size
    }

    /// Runs the shader over a grid of workgroups.
    pub fn dispatch(&self, buffers: &mut [Buffer], bindings: &[Binding], grid: [u32; 3], options: &Options) -> Result<Report, Error> {
        if !(1..=128).contains(&options.subgroup_size) {
            return Err(Error::Unsupported(format!("subgroups of {}", options.subgroup_size)));
        }
        let ranges = self.ranges(buffers, bindings)?;
        for (declared, range) in self.program.buffers.iter().zip(&ranges) {
            if declared.writable {
                buffers[range.buffer].memory.follow();
            }
        }
        let mut random = fastrand::Rng::with_seed(options.seed);
        let invocations = self.program.workgroup_size.iter().product::<u32>() as usize;
        let mut findings = Findings::default();
        let mut covered = vec![0; self.program.lines.len()];
        let subgroups = Subgroups::new(options.subgroup_size as usize, invocations, options.lanes, &mut random);
        let parts =
            Parts { program: &self.program, buffers: &mut *buffers, ranges: &ranges, findings: &mut findings, covered: &mut covered };
        let mut machine = Machine::new(parts, subgroups, options.most_iterations, random.fork());
        let [x, y, z] = grid;
        let mut workgroups: Vec<u32> = (0..x * y * z).collect();
        random.shuffle(&mut workgroups);
        let mut iterations = 0;
        let mut loops: Vec<(u32, u64)> = self.program.loops.iter().map(|&line| (line, 0)).collect();
        for index in workgroups {
            let id = [index % x, index / x % y, index / x / y];
            machine.subgroups = Subgroups::new(options.subgroup_size as usize, invocations, options.lanes, &mut random);
            set_builtins(&mut machine, id, grid);
            machine.run(POISON);
            let mut of_lane = vec![0; invocations];
            for ((_, most), counts) in loops.iter_mut().zip(machine.iterations.chunks_exact(invocations)) {
                *most = counts.iter().copied().fold(*most, u64::max);
                of_lane.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            iterations = of_lane.into_iter().fold(iterations, u64::max);
        }
        ranges.iter().for_each(|range| buffers[range.buffer].memory.forget());
        Ok(Report { findings: findings.into_list(), iterations, loops, covered })
    }

    /// Returns the range of a buffer that each declaration is bound to.
    fn ranges(&self, buffers: &[Buffer], bindings: &[Binding]) -> Result<Vec<Range>, Error> {
        let range = |declared: &Declared| {
            let number = declared.binding;
            let binding = bindings.iter().find(|binding| binding.binding == number && declared.group == 0);
            let binding = binding.ok_or_else(|| Error::Bindings(format!("{number} is not bound")))?;
            let buffer = buffers.get(binding.buffer).ok_or_else(|| Error::Bindings(format!("{number} has no buffer")))?;
            let (first, there) = (binding.offset / 4, buffer.memory.words.len());
            if !binding.offset.is_multiple_of(4) || first > there {
                return Err(Error::Bindings(format!("{number} starts at byte {} of {}", binding.offset, 4 * there)));
            }
            Ok(Range { buffer: binding.buffer, first, words: binding.size.div_ceil(4).min(there - first) })
        };
        let ranges = self.program.buffers.iter().map(range).collect::<Result<Vec<_>, _>>()?;
        let declared = &self.program.buffers;
        for (at, range) in ranges.iter().enumerate().filter(|&(at, _)| declared[at].writable) {
            if ranges.iter().enumerate().any(|(other, o)| other != at && o.buffer == range.buffer) {
                return Err(Error::Bindings(format!("{} is written to and bound twice", declared[at].binding)));
            }
        }
        Ok(ranges)
    }
}

fn set_builtins(machine: &mut Machine<'_>, id: [u32; 3], grid: [u32; 3]) {
    let program = machine.program;
    let size = program.workgroup_size;
    for &(builtin, value) in &program.builtins {
        for lane in 0..machine.registers.lanes {
            let index = lane as u32;
            let local = [index % size[0], index / size[0] % size[1], index / size[0] / size[1]];
            let (subgroup, subgroup_lane) = machine.subgroups.place[lane];
            let words = match builtin {
                BuiltIn::GlobalInvocationId => [0, 1, 2].map(|axis| id[axis] * size[axis] + local[axis]),
                BuiltIn::LocalInvocationId => local,
                BuiltIn::LocalInvocationIndex => [index; 3],
                BuiltIn::WorkGroupId => id,
                BuiltIn::WorkGroupSize => size,
                BuiltIn::NumWorkGroups => grid,
                BuiltIn::NumSubgroups => [machine.subgroups.members.len() as u32; 3],
                BuiltIn::SubgroupId => [subgroup as u32; 3],
                BuiltIn::SubgroupSize => [machine.subgroups.size as u32; 3],
                // Subgroup lane; lowering refuses all other built-ins.
                _ => [subgroup_lane as u32; 3],
            };
            (0..value.words).for_each(|word| machine.registers.word_mut(value, word)[lane] = words[word as usize]);
        }
    }
}
