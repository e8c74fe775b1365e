//! Slice whose parts several threads write at once, and reusable scratch memory.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// Mutable slice that several threads write in disjoint places.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: all access is through unsafe functions whose callers keep the places of different threads disjoint.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// Returns a part of the slice.
    ///
    /// # Safety
    /// While the part is borrowed, nothing else reads or writes it.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice that was borrowed mutably for 'a; not aliased, by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Converts the elements of `row` and writes them `step` apart from `start` on.
    ///
    /// # Safety
    /// Nothing else reads or writes these places meanwhile.
    pub(super) unsafe fn scatter(&self, start: usize, step: usize, row: &[f32], convert: impl Fn(f32) -> T) {
        assert!(row.is_empty() || start + (row.len() - 1) * step < self.len);
        for (i, &x) in row.iter().enumerate() {
            // SAFETY: not beyond the last place, which was checked; not aliased, by contract.
            unsafe { self.start.add(start + i * step).write(convert(x)) };
        }
    }
}

/// f32 elements in a cache line.
pub(super) const LINE: usize = 16;

/// A cache line.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Reusable f32 memory, aligned to a cache line, that grows as needed.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// Returns the first `len` elements with their previous contents; new memory is 0.
    pub(super) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LINE]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// Returns the element at `index`.
    pub(super) fn get(&self, index: usize) -> f32 {
        self.0[index / LINE].0[index % LINE]
    }
}
