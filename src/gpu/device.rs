//! Device and what is kept for it: capabilities, pipelines, results of tuning.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use web_time::Instant;

use super::adapter::{Chosen, MATRIX_FEATURES, caps, matrix_size, wanted_features};
use super::browser;
use super::clock::{Clock, CompiledKernel, Phase, Spent, timed};
use super::handle::Handle;
use super::loss::{Scopes, Sentinel};
use super::pipeline::{Pipeline, PipelineKey, compile};
use super::pipeline_cache::PipelineCache;
use super::probe;
use crate::error::{Cause, Error, Result};
use crate::plan::{DeviceCaps, DeviceClass, Plan, Specialise, class_of};
use crate::problem::{Algorithm, Problem, WantGradients};
use crate::wgsl::Kernel;

/// Number of pipelines at which those that nothing is bound to are dropped: an app that tries many users' terms would
/// otherwise keep a few kernels of each, and some drivers take 20 MB for a text.
const MOST_PIPELINES: usize = 256;

/// Options of a device and its shaders. Later versions may add fields: end a literal with `..Default::default()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShaderOptions {
    /// Enables every runtime check (bounds, loops, divisions) and, in an engine, the check of users' `status` functions:
    /// slow, for finding bugs.
    pub checked: bool,
    /// Choice between specialised and generic kernels.
    pub specialise: Specialise,
    /// Device class to plan for instead of the real one, to test the kernels of one device on another.
    pub pretend: Option<DeviceClass>,
    /// Size of cooperative matrices by [`crate::gpu::matrix_size`]; 0 for none. Engines that open a device set it.
    pub matrix_size: u32,
    /// Prefers cooperative matrices where they work. Off by default: no GPU was measured yet, and drivers are young.
    pub prefer_matrices: bool,
    /// Opens the device with cooperative matrices if the adapter has them, for [`crate::Engine::tune`] to try (each
    /// answer is checked) and [`crate::Engine::load_tuned`] to use. `prefer_matrices` does so too.
    pub tune_matrices: bool,
    /// Maximum size of the scratch buffers of a plan together, in bytes; `None` for no maximum. Plans take fewer splits
    /// and smaller parts to obey it; what still needs more is refused as [`Error::Limit`]. [`Plan::scratch_bytes`] says
    /// what a plan needs.
    pub scratch_budget: Option<u64>,
    /// Skips the tiny problem that each kernel computes before its first use: see [`crate::Engine::check_kernels`]. The
    /// environment variable `WGPU_ATTENTION_CANARY=off` does so too.
    pub skip_canary: bool,
}

/// A wgpu device and queue, ready to compute attention. Cheap to clone; clones share pipelines and buffers.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
}

struct Shared {
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// Capabilities except those found by probes.
    read_off: DeviceCaps,
    caps: OnceLock<DeviceCaps>,
    is_software: bool,
    name: String,
    options: ShaderOptions,
    sentinel: Sentinel,
    /// Pipelines kept for later calls.
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Number of pipelines compiled so far.
    compiled: AtomicUsize,
    clock: Clock,
    /// Compiled pipelines in a file; `None` inside if the device cannot have any.
    cache: OnceLock<Option<PipelineCache>>,
    /// Fastest kernels that tuning has found, by class of problem.
    tuned: Mutex<BTreeMap<String, Kernel>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("name", &self.shared.name).field("options", &self.shared.options).finish()
    }
}

impl Gpu {
    /// Wraps an app's own device and queue. Limits and features are used as they are, and no hook is replaced. Work is
    /// submitted only by calls that say so, and once on a software adapter: see [`Self::caps`].
    ///
    /// Request `adapter.limits()` and [`wgpu::Features::SUBGROUP`] for the device: WebGPU's defaults are small.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::from_device_with(device, queue, ShaderOptions::default())
    }

    /// [`Self::from_device`] with options.
    pub fn from_device_with(device: wgpu::Device, queue: wgpu::Queue, options: ShaderOptions) -> Self {
        let (features, info) = browser::describe(&device);
        let caps = caps(features, &device.limits(), &info, options.matrix_size);
        let is_software = caps.class == DeviceClass::Software;
        let read_off = DeviceCaps {
            specialise: options.specialise,
            class: options.pretend.unwrap_or(caps.class),
            prefer_matrices: options.prefer_matrices,
            scratch_budget: options.scratch_budget.unwrap_or(u64::MAX),
            ..caps
        };
        // Browsers name no driver.
        let driver = format!("{}, {} {}", info.backend.to_str(), info.driver, info.driver_info);
        let name = format!("{} ({})", info.name, driver.trim_end_matches([',', ' ']));
        let sentinel = Sentinel::new(&device);
        let shared = Shared {
            device,
            queue,
            read_off,
            caps: OnceLock::new(),
            is_software,
            name,
            options,
            sentinel,
            pipelines: Mutex::default(),
            compiled: AtomicUsize::new(0),
            clock: Clock::default(),
            cache: OnceLock::new(),
            tuned: Mutex::default(),
        };
        Self { shared: Arc::new(shared), handle: Arc::default() }
    }

    /// Returns a handle of the device for objects whose late errors are not to be mixed with those of others: see
    /// [`Self::settled`].
    #[must_use]
    pub fn with_own_errors(&self) -> Self {
        Self { handle: Arc::default(), ..self.clone() }
    }

    /// Returns a handle for one call: its late errors are its own, its buffers are destroyed with it.
    pub(super) fn for_call(&self) -> Self {
        Self { handle: Arc::new(Handle::of_call()), ..self.clone() }
    }

    /// Waits until the browser has judged what was created and bound with this handle and its clones so far, and
    /// returns the first error: a shader that does not compile, memory that is not there. Ready at once elsewhere,
    /// where the functions return their errors themselves. Futures like [`crate::Engine::attention_async`] settle on
    /// their own.
    pub async fn settled(&self) -> Result<()> {
        let judged = std::mem::take(&mut *self.handle.pipelines());
        let settled = self.handle.late().await;
        if settled.is_ok() {
            self.pipelines().extend(judged);
        }
        settled
    }

    /// Has the handle, if it is that of a call, destroy a buffer at its end.
    pub(super) fn owns(&self, buffer: &wgpu::Buffer) {
        self.handle.owns(buffer);
    }

    /// Opens a device on the adapter, with all of its limits.
    pub(crate) async fn open(chosen: &Chosen, options: ShaderOptions) -> Result<Self> {
        let adapter = &chosen.adapter;
        let matrix_size = if options.prefer_matrices || options.tune_matrices { matrix_size(adapter) } else { 0 };
        let features = wanted_features(adapter);
        if matrix_size > 0 {
            match request(adapter, features | MATRIX_FEATURES).await {
                Ok((device, queue)) => return Ok(Self::from_device_with(device, queue, ShaderOptions { matrix_size, ..options })),
                Err(why) => log::warn!("{}: no cooperative matrices: {why}", adapter.get_info().name),
            }
        }
        let (device, queue) = request(adapter, features).await.map_err(|why| Error::Device { why: why.into() })?;
        Ok(Self::from_device_with(device, queue, ShaderOptions { matrix_size: 0, ..options }))
    }

    /// Device of wgpu.
    pub fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// Queue of the device.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.shared.queue
    }

    /// Capabilities that the planner works with.
    ///
    /// On a software adapter, the first call (every plan makes one) submits a small dispatch and waits for it, because
    /// such adapters silently end loops early, and only a trial shows which. It takes milliseconds, once per adapter
    /// and process. Real GPUs are not probed: their time limit loses the device, which is noticed, and one more kernel
    /// would delay every start by up to a second. Browsers are not either, because nothing can wait there.
    pub fn caps(&self) -> &DeviceCaps {
        let Shared { device, queue, read_off, caps, is_software, name, .. } = &*self.shared;
        caps.get_or_init(|| {
            let probed = *is_software && !cfg!(target_family = "wasm");
            let loop_iterations = if probed { probe::loop_iterations(device, queue, name) } else { None };
            DeviceCaps { loop_iterations, ..read_off.clone() }
        })
    }

    /// Name: adapter, backend and driver.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Plans with the fastest kernel that tuning has found for this class of problems.
    pub(crate) fn plan(&self, problem: &Problem, algorithm: Algorithm) -> Result<Plan> {
        self.timed(Phase::Plan, || Plan::of(problem, self.caps(), algorithm, self.fastest(problem)))
    }

    /// Plans the wanted gradients of a problem.
    pub(crate) fn plan_backward(&self, problem: &Problem, want: &WantGradients) -> Result<Plan> {
        self.timed(Phase::Plan, || Plan::of_backward(problem, want, self.caps()))
    }

    /// Fastest kernel that tuning has found for this class of problems.
    pub(super) fn fastest(&self, problem: &Problem) -> Option<Kernel> {
        let tuned = self.tuned();
        if tuned.is_empty() { None } else { tuned.get(&class_of(problem)).copied() }
    }

    /// Results of autotuning, by class of problem.
    pub(crate) fn tuned(&self) -> MutexGuard<'_, BTreeMap<String, Kernel>> {
        self.shared.tuned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_checked(&self) -> bool {
        self.shared.options.checked
    }

    /// True if kernels are tried before their first use.
    pub(crate) fn wants_canary(&self) -> bool {
        let off = || std::env::var_os("WGPU_ATTENTION_CANARY").is_some_and(|value| value == "off");
        !self.shared.options.skip_canary && !off()
    }

    /// Number of pipelines compiled so far.
    pub fn pipelines_compiled(&self) -> usize {
        self.shared.compiled.load(Ordering::Relaxed)
    }

    /// Keeps compiled pipelines in a file in `folder`, which is created if needed, so that the next process need not
    /// compile them. Call it before the first kernel is compiled. Returns the bytes that were loaded, 0 from a new file, or
    /// `None` if the device cannot do this: it must be Vulkan's and have [`wgpu::Features::PIPELINE_CACHE`], which an app
    /// requests for a device of its own. Many drivers, those of desktops above all, keep a cache themselves.
    ///
    /// There is a file for each adapter and driver. It is replaced at once after each kernel that is new in it; of two
    /// processes, the last one's stays. A file of another version, driver or adapter, or a damaged one, is replaced; a
    /// folder that cannot be written is a warning in the log. A checksum shows damage, not malice: the driver trusts what
    /// it reads, so nobody else may write to the folder. The first call decides for all clones.
    pub fn keep_pipelines(&self, folder: &Path) -> Option<usize> {
        let open = || PipelineCache::open(self.device(), &browser::describe(self.device()).1, folder);
        self.shared.cache.get_or_init(open).as_ref().map(|cache| cache.loaded)
    }

    /// [`Self::keep_pipelines`] in `folder`, or else the one that the environment names.
    pub(crate) fn keep_pipelines_if_asked(self, folder: Option<&Path>) -> Self {
        let named = || std::env::var_os("WGPU_ATTENTION_PIPELINE_CACHE").filter(|folder| !folder.is_empty()).map(PathBuf::from);
        if let Some(folder) = folder.map(Path::to_path_buf).or_else(named) {
            self.keep_pipelines(&folder);
        }
        self
    }

    /// Kernels compiled so far, oldest first, with their times: the last 1024 of [`Self::pipelines_compiled`].
    pub fn compiled_kernels(&self) -> Vec<CompiledKernel> {
        self.shared.clock.compiled()
    }

    /// Time spent so far, by phase.
    pub fn spent(&self) -> Spent {
        self.shared.clock.spent()
    }

    /// Counts the time of `work` as that of a phase.
    pub(crate) fn timed<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let (result, time) = timed(work);
        self.shared.clock.add(phase, time);
        result
    }

    /// [`Self::timed`] for work that waits.
    pub(super) async fn timed_async<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let result = work.await;
        self.shared.clock.add(phase, started.elapsed());
        result
    }

    /// Returns the pipeline of `key`, compiling it if it is new.
    pub(super) fn pipeline(&self, key: PipelineKey) -> Result<Arc<Pipeline>> {
        let known = self.pipelines().get(&key).cloned();
        if let Some(pipeline) = known.or_else(|| self.handle.pipelines().get(&key).cloned()) {
            return Ok(pipeline);
        }
        let (source, text) = timed(|| key.source());
        let cache = self.shared.cache.get().and_then(Option::as_ref);
        let wgpu_cache = cache.map(|cache| &cache.cache);
        let (compiled, [parse, pipeline], verdict) = compile(self.device(), self.caps(), self.is_checked(), &key, source, wgpu_cache);
        self.shared.compiled.fetch_add(1, Ordering::Relaxed);
        let told = CompiledKernel { name: compiled.name.clone(), text, parse, pipeline, first_run: None };
        self.shared.clock.add_compiled(told, Arc::clone(&compiled.first_run));
        let verdict = self.handle.verdict(verdict);
        self.check_alive()?;
        // All handles get it once it is known to be sound.
        let mut pipelines = match verdict {
            Some(verdict) => {
                verdict?;
                cache.inspect(|cache| cache.save());
                self.pipelines()
            }
            None => self.handle.pipelines(),
        };
        Ok(keep(&mut pipelines, key, compiled, MOST_PIPELINES))
    }

    fn pipelines(&self) -> MutexGuard<'_, HashMap<PipelineKey, Arc<Pipeline>>> {
        self.shared.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the device is lost: calls return [`Error::Lost`]. Browsers tell between two tasks of their event loop.
    pub fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// Returns an error if the device is lost.
    pub(super) fn check_alive(&self) -> Result<()> {
        if self.is_lost() { Err(Error::Lost { why: "the device was destroyed, reset or unplugged".into() }) } else { Ok(()) }
    }

    /// Calls wgpu and returns its errors, in browsers by [`Self::settled`]; on a lost device always [`Error::Lost`].
    pub(super) fn guarded<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        // Opened and closed around synchronous work, so that no other call's errors can get in between.
        let scopes = Scopes::open(self.device());
        let made = call();
        let (error, shared) = (scopes.close(), Arc::clone(&self.shared));
        let verdict = async move { error.await.map_or(Ok(()), |error| Err(shared.failure(cause(error)))) };
        self.handle.verdict(Box::pin(verdict)).unwrap_or(Ok(()))?;
        self.check_alive().map(|()| made)
    }

    /// Converts an error of wgpu: [`Error::Lost`] if the device is lost, else [`Error::Device`].
    pub(super) fn failure(&self, why: impl Into<Cause>) -> Error {
        self.shared.failure(why.into())
    }

    /// Compiles a kernel from changed text, as a wrong compiler would.
    #[cfg(test)]
    pub(crate) fn compile_changed(&self, key: crate::wgsl::KernelKey, change: impl FnOnce(String) -> String) -> Result<()> {
        let key = PipelineKey::Attention(key);
        let mut source = key.source();
        let own = source.text.clone();
        source.text = change(source.text);
        assert_ne!(source.text, own, "there is nothing to change");
        let (pipeline, _, verdict) = compile(self.device(), self.caps(), self.is_checked(), &key, source, None);
        pollster::block_on(verdict)?;
        self.pipelines().insert(key, Arc::new(pipeline));
        Ok(())
    }
}

/// Returns what is kept for `key`, which is `new` if there was nothing. Among `most` entries, those that nobody else holds
/// are dropped first.
fn keep<K: Eq + Hash, V>(kept: &mut HashMap<K, Arc<V>>, key: K, new: V, most: usize) -> Arc<V> {
    if kept.len() >= most {
        kept.retain(|_, value| Arc::strong_count(value) > 1);
    }
    Arc::clone(kept.entry(key).or_insert_with(|| Arc::new(new)))
}

impl Shared {
    fn is_lost(&self) -> bool {
        self.sentinel.sees_loss(&self.device)
    }

    fn failure(&self, why: Cause) -> Error {
        if self.is_lost() { Error::Lost { why } } else { Error::Device { why } }
    }
}

/// Cause of an error of wgpu, which cannot leave its thread in a browser.
fn cause(error: wgpu::Error) -> Cause {
    #[cfg(not(target_family = "wasm"))]
    {
        Cause::new(error)
    }
    #[cfg(target_family = "wasm")]
    {
        error.to_string().into()
    }
}

/// Requests a device with these features and all limits of the adapter. A driver may advertise a feature and refuse it
/// (lavapipe 26 with 128-bit vectors: cooperative matrices); wgpu-hal 30 then panics.
async fn request(adapter: &wgpu::Adapter, required_features: wgpu::Features) -> Result<(wgpu::Device, wgpu::Queue), String> {
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("wgpu-attention"),
        required_features,
        experimental_features: if required_features.contains(MATRIX_FEATURES) {
            // SAFETY: only cooperative matrices are requested. A type that the adapter lacks would be unsafe; kernels
            // use only the `matrix_size` found in its list, and load and store matrices in workgroup memory.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        },
        required_limits: adapter.limits(),
        ..Default::default()
    };
    // On native targets the device is created before there is a future.
    let requested = std::panic::catch_unwind(AssertUnwindSafe(|| browser::with_subgroups(|| adapter.request_device(&descriptor))));
    let future = requested.map_err(|_| "the driver refused a feature that it advertises".to_string())?;
    future.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::choose_every;
    use super::*;

    #[test]
    fn what_nobody_holds_is_dropped_when_there_is_much() {
        let mut kept = HashMap::new();
        let held: Vec<_> = (0..3).map(|key| keep(&mut kept, key, key, 4)).collect();
        assert_eq!(*keep(&mut kept, 2, 20, 4), 2, "it was there");
        keep(&mut kept, 3, 3, 4);
        assert_eq!(kept.len(), 4);
        keep(&mut kept, 4, 4, 4);
        let mut keys: Vec<_> = kept.keys().copied().collect();
        keys.sort_unstable();
        assert_eq!((keys, held.len()), (vec![0, 1, 2, 4], 3));
    }

    #[test]
    fn what_an_adapter_refuses_is_an_error() {
        for chosen in pollster::block_on(choose_every()) {
            let missing = wgpu::Features::all() - wgpu::Features::all_experimental_mask() - chosen.adapter.features();
            let one = missing.iter().next().expect("no adapter has every feature");
            assert!(pollster::block_on(request(&chosen.adapter, one)).is_err());
            let wishes = ShaderOptions { prefer_matrices: true, ..ShaderOptions::default() };
            let gpu = pollster::block_on(Gpu::open(&chosen, wishes)).expect("with matrices or without");
            let usable = gpu.device().features().contains(MATRIX_FEATURES);
            assert_eq!(gpu.caps().matrix_size > 0, usable, "{}", gpu.name());
            let plain = pollster::block_on(Gpu::open(&chosen, ShaderOptions::default())).expect("it opens");
            assert!(!plain.device().features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX), "nobody asked for them");
        }
    }
}
