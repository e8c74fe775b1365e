//! Threads of the CPU path: those of the current rayon pool; in browsers the calling one alone.

#[cfg(not(target_family = "wasm"))]
use rayon::prelude::*;

/// Number of threads.
pub(super) fn threads() -> usize {
    #[cfg(target_family = "wasm")]
    return 1;
    #[cfg(not(target_family = "wasm"))]
    rayon::current_num_threads()
}

/// Calls `run` on each item. Each thread takes the next item as soon as it is free.
#[cfg(not(target_family = "wasm"))]
pub(super) fn for_each<I>(items: I, run: impl Fn(I::Item) + Sync + Send)
where
    I: IntoParallelIterator<Iter: IndexedParallelIterator>,
{
    items.into_par_iter().with_max_len(1).for_each(run);
}

/// Results of `run` on each item, in order. Each thread takes the next item as soon as it is free.
#[cfg(not(target_family = "wasm"))]
pub(super) fn map<I, R: Send>(items: I, run: impl Fn(I::Item) -> R + Sync + Send) -> Vec<R>
where
    I: IntoParallelIterator<Iter: IndexedParallelIterator>,
{
    items.into_par_iter().with_max_len(1).map(run).collect()
}

/// Calls `run` on each item.
#[cfg(target_family = "wasm")]
pub(super) fn for_each<I: IntoIterator>(items: I, run: impl Fn(I::Item)) {
    items.into_iter().for_each(run);
}

/// Results of `run` on each item, in order.
#[cfg(target_family = "wasm")]
pub(super) fn map<I: IntoIterator, R>(items: I, run: impl Fn(I::Item) -> R) -> Vec<R> {
    items.into_iter().map(run).collect()
}
