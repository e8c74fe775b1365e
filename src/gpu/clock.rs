//! Clock: where the time of calls goes.

use std::collections::VecDeque;
use std::ops::Index;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use web_time::Instant;

/// Number of compiled kernels that are remembered.
const MOST_COMPILED: usize = 1024;

/// Phase of a call on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Trial of kernels ([`crate::Engine::check_kernels`]) on the CPU: its plan, its data, the right answer. What a
    /// trial does on the device counts as the phase that it is.
    Trial,
    /// Plans, and the probe of a software adapter at the first one.
    Plan,
    /// Text of kernels in WGSL.
    Text,
    /// Parsing and validation of the text by wgpu's compiler, naga.
    Parse,
    /// Creation of pipelines: naga's translation, then the driver's compiler.
    Pipeline,
    /// Buffers and bind groups.
    Buffers,
    /// Upload of arrays.
    Upload,
    /// Recording and waiting for the device. Some drivers compile a kernel when it is first dispatched: that is here.
    Run,
    /// Copies from the device's results to arrays.
    ReadBack,
}

impl Phase {
    /// All phases, in the order of a call.
    pub const ALL: [Self; 9] =
        [Self::Trial, Self::Plan, Self::Text, Self::Parse, Self::Pipeline, Self::Buffers, Self::Upload, Self::Run, Self::ReadBack];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trial => "trial",
            Self::Plan => "plan",
            Self::Text => "text",
            Self::Parse => "parse",
            Self::Pipeline => "pipeline",
            Self::Buffers => "buffers",
            Self::Upload => "upload",
            Self::Run => "run",
            Self::ReadBack => "read back",
        }
    }
}

/// Time that host calls, and the creation of what an app records, have spent in each [`Phase`]. Two readings of
/// [`super::Gpu::spent`] around a call tell where its time went, if no other thread used the device meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent([Duration; Phase::ALL.len()]);

impl Spent {
    /// Time spent since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|phase| self.0[phase].saturating_sub(earlier.0[phase])))
    }

    /// Time of all phases together. A call takes longer: checks of arguments, for example, belong to none.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

impl Index<Phase> for Spent {
    type Output = Duration;

    fn index(&self, phase: Phase) -> &Duration {
        &self.0[phase as usize]
    }
}

/// Kernel that was compiled, and the time it took.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompiledKernel {
    /// Name of the kernel, which labels its dispatches.
    pub name: String,
    /// Time to put its text together: [`Phase::Text`].
    pub text: Duration,
    /// Time to parse and validate it: [`Phase::Parse`]. Short in browsers, which compile later.
    pub parse: Duration,
    /// Time to create the pipeline: [`Phase::Pipeline`]. Short in browsers, which compile later.
    pub pipeline: Duration,
    /// Time of the first dispatch in a host call, `None` before: some drivers compile no sooner. A call submits it alone,
    /// and waits. Counts as [`Phase::Run`].
    pub first_run: Option<Duration>,
}

/// Times of one device, for all of its handles.
#[derive(Default)]
pub(super) struct Clock(Mutex<Times>);

#[derive(Default)]
struct Times {
    spent: Spent,
    /// Compiled kernels, with the time of the first run of each once it is known.
    compiled: VecDeque<(CompiledKernel, Arc<OnceLock<Duration>>)>,
}

impl Clock {
    pub(super) fn add(&self, phase: Phase, time: Duration) {
        self.lock().spent.0[phase as usize] += time;
    }

    /// Counts the phases of a compiled kernel, and remembers it.
    pub(super) fn add_compiled(&self, kernel: CompiledKernel, first_run: Arc<OnceLock<Duration>>) {
        for (phase, time) in [(Phase::Text, kernel.text), (Phase::Parse, kernel.parse), (Phase::Pipeline, kernel.pipeline)] {
            self.add(phase, time);
        }
        let compiled = &mut self.lock().compiled;
        if compiled.len() == MOST_COMPILED {
            compiled.pop_front();
        }
        compiled.push_back((kernel, first_run));
    }

    pub(super) fn spent(&self) -> Spent {
        self.lock().spent
    }

    pub(super) fn compiled(&self) -> Vec<CompiledKernel> {
        let told = |(kernel, first_run): &(CompiledKernel, Arc<OnceLock<Duration>>)| CompiledKernel {
            first_run: first_run.get().copied(),
            ..kernel.clone()
        };
        self.lock().compiled.iter().map(told).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the result of `work` and the time it took.
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_and_the_last_kernels_are_remembered() {
        let clock = Clock::default();
        let ms = Duration::from_millis;
        clock.add(Phase::Run, ms(3));
        let before = clock.spent();
        for number in 0..=MOST_COMPILED {
            let kernel = CompiledKernel { name: number.to_string(), text: ms(1), parse: ms(2), pipeline: ms(4), first_run: None };
            clock.add_compiled(kernel, Arc::default());
        }
        clock.add(Phase::Run, ms(5));
        let spent = clock.spent().since(&before);
        let number = MOST_COMPILED as u64 + 1;
        assert_eq!(
            [Phase::Text, Phase::Parse, Phase::Pipeline, Phase::Run].map(|phase| spent[phase]),
            [ms(number), ms(2 * number), ms(4 * number), ms(5)]
        );
        assert_eq!(spent.total(), ms(7 * number + 5));
        let names: Vec<_> = clock.compiled().into_iter().map(|kernel| kernel.name).collect();
        assert_eq!((names.len(), names[0].as_str(), names[MOST_COMPILED - 1].as_str()), (MOST_COMPILED, "1", "1024"));
    }
}
