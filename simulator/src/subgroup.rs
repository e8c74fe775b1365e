//! Subgroups: assignment of invocations to lanes, and operations between lanes.

use naga::{CollectiveOperation, SubgroupOperation};

use crate::machine::Machine;
use crate::program::Gather;
use crate::report::Rule;
use crate::value::{Kind, Mask, Value};

/// Mapping of invocations to lanes of subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LaneOrder {
    /// Lanes in the order of `local_invocation_index`, as in most drivers.
    InOrder,
    /// Lanes in an order drawn from the seed, because WGSL promises none.
    #[default]
    Shuffled,
}

/// Subgroups of a workgroup.
#[derive(Debug)]
pub(crate) struct Subgroups {
    pub(crate) size: usize,
    /// Invocations of each subgroup, by lane. The last one may have fewer.
    pub(crate) members: Vec<Vec<usize>>,
    /// Subgroup and lane of each invocation.
    pub(crate) place: Vec<(usize, usize)>,
}

impl Subgroups {
    pub(crate) fn new(size: usize, invocations: usize, order: LaneOrder, random: &mut fastrand::Rng) -> Self {
        let mut all: Vec<usize> = (0..invocations).collect();
        if order == LaneOrder::Shuffled {
            random.shuffle(&mut all);
        }
        let members: Vec<Vec<usize>> = all.chunks(size).map(<[usize]>::to_vec).collect();
        let mut place = vec![(0, 0); invocations];
        for (subgroup, members) in members.iter().enumerate() {
            members.iter().enumerate().for_each(|(lane, &invocation)| place[invocation] = (subgroup, lane));
        }
        Self { size, members, place }
    }
}

impl Machine<'_> {
    /// Reports subgroups that run a statement with only some of their invocations.
    pub(crate) fn check_subgroups(&mut self, line: u32, mask: &Mask) {
        for members in &self.subgroups.members {
            let active = members.iter().filter(|&&invocation| mask.has(invocation)).count();
            if active != 0 && active != members.len() {
                let detail = || format!("{active} of {} invocations of a subgroup", members.len());
                self.findings.add(Rule::NonUniformSubgroup, line, None, detail);
            }
        }
    }

    pub(crate) fn ballot(&mut self, predicate: Option<Value>, result: Value, line: u32, mask: &Mask) {
        self.check_subgroups(line, mask);
        predicate.iter().for_each(|&predicate| self.use_value(predicate, "a ballot", line, mask));
        let mut words = vec![[0u32; 4]; self.subgroups.members.len()];
        for lane in mask.lanes() {
            let (subgroup, at) = self.subgroups.place[lane];
            let set = predicate.is_none_or(|predicate| self.registers.get(predicate, 0, lane) != 0);
            words[subgroup][at / 32] |= u32::from(set) << (at % 32);
        }
        for lane in mask.lanes() {
            let ballot = words[self.subgroups.place[lane].0];
            (0..4).for_each(|word| self.registers.word_mut(result, word)[lane] = ballot[word as usize]);
        }
    }

    pub(crate) fn gather(&mut self, mode: Gather, from: Value, result: Value, line: u32, mask: &Mask) {
        self.check_subgroups(line, mask);
        self.registers.clean(result);
        if let Gather::Broadcast(lane) | Gather::Shuffle(lane) | Gather::Down(lane) | Gather::Up(lane) | Gather::Xor(lane) = mode {
            self.use_value(lane, "a lane", line, mask);
        }
        for lane in mask.lanes() {
            let source = self.source(mode, lane, line, mask);
            let invocation = source.and_then(|source| self.subgroups.members[self.subgroups.place[lane].0].get(source).copied());
            let invocation = invocation.filter(|&invocation| mask.has(invocation));
            if invocation.is_none() {
                let has = self.subgroups.members[self.subgroups.place[lane].0].len();
                let from = source.map_or("a lane below 0".into(), |source| format!("lane {source}"));
                self.findings.add(Rule::NoSuchLane, line, None, || format!("{from} of {has}"));
            }
            for word in 0..result.words {
                let from = invocation.map_or((u32::MAX, line), |invocation| {
                    (self.registers.get(from, word, invocation), self.registers.origin(from, word, invocation))
                });
                self.registers.set(result, word, lane, from);
            }
        }
    }

    /// Returns the lane that an invocation takes its value from.
    fn source(&mut self, mode: Gather, invocation: usize, line: u32, mask: &Mask) -> Option<usize> {
        let (subgroup, own) = self.subgroups.place[invocation];
        let get = |value: Value| self.registers.get(value, 0, invocation) as usize;
        match mode {
            Gather::First => self.subgroups.members[subgroup].iter().position(|&invocation| mask.has(invocation)),
            Gather::Broadcast(lane) | Gather::QuadBroadcast(lane) => {
                let wanted = get(lane);
                let group = if matches!(mode, Gather::Broadcast(_)) { self.subgroups.size } else { 4 };
                let same = |&other: &usize| {
                    let at = self.subgroups.place[other].1;
                    !mask.has(other) || at / group != own / group || self.registers.get(lane, 0, other) as usize == wanted
                };
                if !self.subgroups.members[subgroup].iter().all(same) {
                    self.findings.add(Rule::NonUniformArgument, line, None, || "broadcast from several lanes".into());
                }
                Some(if group == 4 { own / 4 * 4 + wanted } else { wanted })
            }
            Gather::Shuffle(lane) => Some(get(lane)),
            Gather::Down(by) => own.checked_add(get(by)),
            Gather::Up(by) => own.checked_sub(get(by)),
            Gather::Xor(by) => Some(own ^ get(by)),
            Gather::QuadSwap(direction) => Some(own ^ direction as usize),
        }
    }

    pub(crate) fn collective(
        &mut self,
        operation: SubgroupOperation,
        how: CollectiveOperation,
        [from, result]: [Value; 2],
        line: u32,
        mask: &Mask,
    ) {
        self.check_subgroups(line, mask);
        self.registers.clean(result);
        for subgroup in 0..self.subgroups.members.len() {
            let members: Vec<usize> = self.subgroups.members[subgroup].iter().copied().filter(|&one| mask.has(one)).collect();
            for word in 0..result.words {
                let values: Vec<u32> = members.iter().map(|&member| self.registers.get(from, word, member)).collect();
                for (at, &member) in members.iter().enumerate() {
                    let terms = match how {
                        CollectiveOperation::Reduce => &values[..],
                        CollectiveOperation::InclusiveScan => &values[..=at],
                        CollectiveOperation::ExclusiveScan => &values[..at],
                    };
                    let sum = terms.iter().copied().reduce(|a, b| combine(operation, from.kind, a, b));
                    let bits = sum.unwrap_or_else(|| neutral(operation, from.kind));
                    let origin = members.iter().map(|&member| self.registers.origin(from, word, member)).max().unwrap_or(0);
                    self.registers.set(result, word, member, (bits, origin));
                }
            }
        }
    }
}

fn combine(operation: SubgroupOperation, kind: Kind, a: u32, b: u32) -> u32 {
    use SubgroupOperation as Op;
    let (x, y) = (f32::from_bits(a), f32::from_bits(b));
    match (operation, kind) {
        (Op::All | Op::And, _) => a & b,
        (Op::Any | Op::Or, _) => a | b,
        (Op::Xor, _) => a ^ b,
        (Op::Add, Kind::F32) => (x + y).to_bits(),
        (Op::Mul, Kind::F32) => (x * y).to_bits(),
        (Op::Min, Kind::F32) => x.min(y).to_bits(),
        (Op::Max, Kind::F32) => x.max(y).to_bits(),
        (Op::Min, Kind::I32) => (a as i32).min(b as i32) as u32,
        (Op::Max, Kind::I32) => (a as i32).max(b as i32) as u32,
        (Op::Add, _) => a.wrapping_add(b),
        (Op::Mul, _) => a.wrapping_mul(b),
        (Op::Min, _) => a.min(b),
        (Op::Max, _) => a.max(b),
    }
}

/// Returns the first value of an exclusive scan, which WGSL has for sums and products only.
fn neutral(operation: SubgroupOperation, kind: Kind) -> u32 {
    match (operation, kind) {
        (SubgroupOperation::Mul, Kind::F32) => 1f32.to_bits(),
        (SubgroupOperation::Mul, _) => 1,
        _ => 0,
    }
}
