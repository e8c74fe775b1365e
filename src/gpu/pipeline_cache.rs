//! Compiled pipelines that are kept in a file for the next process, where the backend has a pipeline cache.
//!
//! The file is a header line, then the data of [`wgpu::PipelineCache::get_data`]. The header has the versions of this
//! crate and of wgpu, the adapter, the driver with its version, and length and checksum of the data. Data is used only if
//! its header is, byte by byte, the one that would be written for it: anything else is ignored and replaced.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use super::handle::poll_once;
use super::loss::Scopes;

/// Major version of wgpu. Its releases read each other's data, so the minor one does not matter.
const WGPU: &str = "30";
/// Size from which on a file is not loaded, but started anew: caches only grow.
const MOST_BYTES: u64 = 256 << 20;

/// Pipeline cache of a device with its file.
pub(super) struct PipelineCache {
    pub(super) cache: wgpu::PipelineCache,
    file: PathBuf,
    /// Versions, adapter and driver.
    key: String,
    /// Bytes of data that the file had.
    pub(super) loaded: usize,
    /// Bytes of data that the file has now; `None` once it could not be written.
    saved: Mutex<Option<usize>>,
}

impl PipelineCache {
    /// Creates a cache from its file in `folder`. `None` if the device has none.
    pub(super) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            log::info!("{}: pipelines are not kept: no wgpu::Features::PIPELINE_CACHE", info.name);
            return None;
        }
        let adapter = format!("{}, {}, {:x}:{:x}, {}", info.backend.to_str(), info.name, info.vendor, info.device, info.driver);
        let key = format!("wgpu-attention {}, wgpu {WGPU}, {adapter} {}", env!("CARGO_PKG_VERSION"), info.driver_info);
        // An update of the driver finds the old file, and replaces it.
        let file = folder.join(format!("pipelines-{:016x}", checksum(adapter.as_bytes())));
        let contents = read(&file);
        let data = contents.as_deref().and_then(|contents| open(&key, contents));
        if contents.is_some() && data.is_none() {
            log::warn!("{}: not of this version and driver, or damaged: it is replaced", file.display());
        }
        let scopes = Scopes::open(device);
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("attention"), data, fallback: true };
        // SAFETY: wgpu asks for data that `get_data` returned, and itself refuses what another adapter, driver or format
        // made. Only `save` writes files with this header, and it writes what `get_data` returned. The header has the
        // adapter, the driver's version, and length and checksum of the data, all of which were just compared: another
        // device's data, a truncated or a damaged file is not passed on. A forged file would be; `Gpu::keep_pipelines`
        // asks for a folder that nobody else can write.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        if let Poll::Ready(Some(error)) = poll_once(pin!(scopes.close())) {
            log::warn!("pipelines are not kept: {error}");
            return None;
        }
        let loaded = data.map_or(0, <[u8]>::len);
        log::info!("{}: {loaded} bytes of pipelines", file.display());
        Some(Self { cache, file, key, loaded, saved: Mutex::new(Some(loaded)) })
    }

    /// Writes the file if there is more in the cache than in it. A failure is logged, once.
    pub(super) fn save(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = *saved else { return };
        let Some(data) = self.cache.get_data().filter(|data| data.len() != bytes) else { return };
        let written = replace(&self.file, &seal(&self.key, &data));
        if let Err(error) = &written {
            log::warn!("{}: pipelines are not kept: {error}", self.file.display());
        }
        *saved = written.ok().map(|()| data.len());
    }
}

/// Contents of the file, unless it is not there, cannot be read, or has grown too large.
fn read(file: &Path) -> Option<Vec<u8>> {
    let is_small = fs::metadata(file).is_ok_and(|metadata| metadata.len() <= MOST_BYTES);
    if is_small { fs::read(file).ok() } else { None }
}

/// Header of a file with `data`, one line.
fn header(key: &str, data: &[u8]) -> Vec<u8> {
    format!("{key} {:016x} {:016x}\n", data.len(), checksum(data)).into_bytes()
}

/// Contents of a file with `data`.
fn seal(key: &str, data: &[u8]) -> Vec<u8> {
    [&*header(key, data), data].concat()
}

/// Data of a file, if the file is what [`seal`] makes of it.
fn open<'a>(key: &str, contents: &'a [u8]) -> Option<&'a [u8]> {
    let (found, data) = contents.split_at_checked(header(key, &[]).len())?;
    (found == header(key, data)).then_some(data)
}

/// FNV-1a of 64 bits. A change of one byte always changes it: each step is invertible.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Replaces a file at once, so that whoever reads it sees the old contents or the new ones.
fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let own = format!("{}-{}.tmp", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let new = file.with_extension(own);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let replaced = fs::write(&new, contents).and_then(|()| fs::rename(&new, file));
    if replaced.is_err() {
        let _ = fs::remove_file(&new); // it may not be there
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "wgpu-attention 1.2.3, wgpu 30, vulkan, Adapter, 1:2, driver 4.5";

    #[test]
    fn a_file_is_opened_only_as_it_was_sealed() {
        for data in [&b""[..], b"pipelines", &[0; 300]] {
            let whole = seal(KEY, data);
            assert_eq!(open(KEY, &whole), Some(data));
            for at in 0..whole.len() {
                assert_eq!(open(KEY, &whole[..at]), None, "{at} of {} bytes", whole.len());
                for flipped in [1, 0x20, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= flipped;
                    assert_eq!(open(KEY, &damaged), None, "byte {at} of {}", whole.len());
                }
            }
            assert_eq!(open(KEY, &[&whole[..], b"."].concat()), None, "longer");
            for other in [KEY.replace("1.2.3", "1.2.4"), KEY.replace("4.5", "4.6"), KEY.replace("4.5", "4.51"), KEY.replace("1:2", "1:3")] {
                assert_eq!(open(&other, &whole), None, "{other}");
            }
        }
        let swapped = [seal(KEY, b"ab"), seal(KEY, b"ba")].map(|file| file[file.len() - 19..].to_vec());
        assert_ne!(swapped[0], swapped[1], "the checksum knows the order");
    }

    #[test]
    fn the_version_of_wgpu_is_the_one_that_is_used() {
        assert!(include_str!("../../Cargo.toml").contains(&format!("wgpu = {{ version = \"{WGPU}.")));
    }

    #[test]
    fn files_are_replaced_whole() {
        let folder = std::env::temp_dir().join(format!("wgpu-attention-replace-{}", std::process::id()));
        let file = folder.join("pipelines");
        let contents = [vec![1; 50_000], vec![2; 90_000]];
        std::thread::scope(|scope| {
            for contents in &contents {
                scope.spawn(|| (0..50).for_each(|_| replace(&file, contents).expect("written")));
            }
            let seen = (0..200).filter_map(|_| fs::read(&file).ok());
            seen.for_each(|seen| assert!(contents.contains(&seen), "{} bytes", seen.len()));
        });
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 1, "nothing else is left");
        assert!(replace(&file.join("below a file"), b"").is_err());
        fs::remove_dir_all(folder).expect("removed");
    }
}
