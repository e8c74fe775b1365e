//! Compiled kernels that are kept in files, and what is in the way of that.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::buffers::draw;

use wgpu_attention::gpu::{Gpu, ShaderOptions};
use wgpu_attention::plan::Specialise;
use wgpu_attention::{Dims, Engine, HostVec, Inputs, Problem, oracle, wgpu};

/// Folder of a test, which is removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("wgpu-attention-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the temporary folder can be written");
        Self(folder)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&self.0).expect("there").map(|entry| entry.expect("readable").path()).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removed");
    }
}

/// Opens a device on each adapter that has pipeline caches.
fn devices() -> Vec<Gpu> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let with = adapters.into_iter().filter(|adapter| adapter.features().contains(wgpu::Features::PIPELINE_CACHE));
    let open = |adapter: wgpu::Adapter| {
        let descriptor = wgpu::DeviceDescriptor {
            required_features: wgpu::Features::PIPELINE_CACHE,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
        Gpu::from_device_with(device, queue, ShaderOptions { specialise: Specialise::Never, ..Default::default() })
    };
    with.map(open).collect()
}

/// Computes a small problem on the device and asserts that the answer is right.
fn assert_right(gpu: &Gpu) {
    let problem = Problem::new(Dims::self_attention(1, 1, 9, 8));
    let [query, key, value] = [1, 2, 3].map(|seed| draw(seed, problem.query_len()));
    let inputs = Inputs::new(&query, &key, &value);
    let HostVec::F32(got) = Engine::on_gpu(gpu.clone()).attention(&problem, &inputs).expect("computed").output else { panic!("f32") };
    let expected = oracle::attention(&problem, &inputs).expect("valid").into_outputs(&problem, &inputs).output.to_f32();
    let farthest = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(farthest < 1e-5 && got.len() == expected.len(), "{}: off by {farthest}", gpu.name());
}

/// Computes on a new device of the same adapter. Returns the bytes that it loaded.
fn loaded(number: usize, folder: &Path) -> usize {
    let gpu = &devices()[number];
    let loaded = gpu.keep_pipelines(folder).expect("the device has a cache");
    assert_right(gpu);
    loaded
}

#[test]
fn a_second_device_loads_what_the_first_one_compiled() {
    for (number, gpu) in devices().iter().enumerate() {
        let folder = Folder::new(&format!("pipelines-{number}"));
        let missing = folder.0.join("not there yet");
        assert_eq!(gpu.keep_pipelines(&missing), Some(0));
        assert_eq!(gpu.keep_pipelines(&folder.0), Some(0), "the first folder stays");
        assert_right(gpu);
        assert!(loaded(number, &missing) > 0, "{}", gpu.name());
        assert_eq!(fs::read_dir(&missing).expect("there").count(), 1, "nothing else is left");
    }
}

#[test]
fn damaged_files_are_ignored_and_replaced() {
    for number in 0..devices().len() {
        let folder = Folder::new(&format!("damaged-{number}"));
        assert_eq!(loaded(number, &folder.0), 0);
        let [file] = &folder.files()[..] else { panic!("one file") };
        let whole = fs::read(file).expect("there");
        let data = whole.iter().position(|&byte| byte == b'\n').expect("the header ends") + 1;
        let flipped = |at: usize| {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            damaged
        };
        let newer = String::from_utf8_lossy(&whole[..data]).replacen("wgpu-attention ", "wgpu-attention 9", 1).into_bytes();
        for (what, damaged) in [
            ("empty", Vec::new()),
            ("of another version", [&newer, &whole[data..]].concat()),
            ("header flipped", flipped(data / 2)),
            ("length flipped", flipped(data - 20)),
            ("checksum flipped", flipped(data - 2)),
            ("first byte of the data flipped", flipped(data)),
            ("driver's part flipped", flipped(whole.len() - 10)),
            ("last byte flipped", flipped(whole.len() - 1)),
            ("without data", whole[..data].to_vec()),
            ("truncated", whole[..whole.len() - 1].to_vec()),
            ("longer", [&whole[..], b"x"].concat()),
            ("foreign", b"not a cache at all".repeat(1000)),
        ] {
            fs::write(file, damaged).expect("written");
            assert_eq!(loaded(number, &folder.0), 0, "{what}");
            assert!(devices()[number].keep_pipelines(&folder.0) > Some(0), "{what}: it was not replaced");
        }
    }
}

#[test]
fn folders_that_cannot_be_written_stop_nothing() {
    for (number, gpu) in devices().iter().enumerate() {
        let folder = Folder::new(&format!("unwritable-{number}"));
        let file = folder.0.join("file");
        fs::write(&file, "mine").expect("written");
        assert_eq!(gpu.keep_pipelines(&file), Some(0), "a file is not a folder");
        assert_right(gpu);
        assert_eq!(fs::read_to_string(&file).expect("there"), "mine");
        let mut permissions = fs::metadata(&folder.0).expect("there").permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&folder.0, permissions.clone()).expect("owned");
        loaded(number, &folder.0);
        #[expect(clippy::permissions_set_readonly_false, reason = "so that the folder can be removed")]
        permissions.set_readonly(false);
        fs::set_permissions(&folder.0, permissions).expect("owned");
    }
}

#[test]
fn a_device_without_the_feature_keeps_nothing() {
    for (device, queue) in crate::common::buffers::devices(wgpu::Adapter::limits) {
        let folder = Folder::new("without");
        let gpu = Gpu::from_device(device, queue);
        assert_eq!(gpu.keep_pipelines(&folder.0), None);
        assert_right(&gpu);
        assert!(folder.files().is_empty());
    }
}
