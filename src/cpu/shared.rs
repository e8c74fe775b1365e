//! A slice whose parts several threads write at once, and the scratch memory of a thread.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// A mutable slice, to be written by several threads in places that do not overlap.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: all access is through unsafe functions whose callers keep the places of different threads apart.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// A part of it.
    ///
    /// # Safety
    /// As long as the part is borrowed, nobody else reads or writes there.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice that was borrowed mutably for 'a; not aliased, by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Writes `row`, converted, to places `step` apart.
    ///
    /// # Safety
    /// Nobody else reads or writes these places meanwhile.
    pub(super) unsafe fn scatter(&self, start: usize, step: usize, row: &[f32], convert: impl Fn(f32) -> T) {
        assert!(row.is_empty() || start + (row.len() - 1) * step < self.len);
        for (i, &x) in row.iter().enumerate() {
            // SAFETY: at most the last place, which was checked; not aliased, by contract.
            unsafe { self.start.add(start + i * step).write(convert(x)) };
        }
    }
}

/// A cache line.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Memory of f32 that grows as needed, is kept, and starts at a cache line.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// `len` numbers, of which nothing is known.
    pub(super) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// The number at `index` of what was taken last.
    pub(super) fn get(&self, index: usize) -> f32 {
        self.0[index / 16].0[index % 16]
    }
}
