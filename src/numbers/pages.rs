//! Large pages for large arrays: fewer faults when an array is first written, fewer misses when rows lie far apart.

use bytemuck::Zeroable;

/// Bytes from which on an array asks for large pages: at least three of 2 MiB lie inside.
#[cfg(target_os = "linux")]
const LEAST: usize = 8 << 20;

/// Returns `len` zeros, in large pages where there are many and the system has them.
pub(crate) fn zeros<T: Zeroable>(len: usize) -> Vec<T> {
    let mut all = bytemuck::zeroed_vec(len);
    prefer_large(&mut all);
    all
}

/// Asks the system to use large pages for the memory of a large array that is not in use yet. Nothing depends on the answer.
pub(crate) fn prefer_large<T>(array: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let (start, bytes) = (array.as_mut_ptr() as usize, array.capacity() * size_of::<T>());
        let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
        if bytes >= LEAST {
            // SAFETY: the pages lie inside memory that the array owns, and the advice leaves what they hold as it is.
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = array;
}
