//! Tables of shapes.

pub(super) const ANY: usize = usize::MAX;

/// Shape of a kernel, with the problems that it is meant for. The first of a table that suits and fits is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suited<S> {
    /// Fewest rows (or keys, if those are owned).
    pub(super) min_rows: usize,
    pub(super) max_rows: usize,
    /// Widest head.
    pub(super) max_dim: usize,
    pub(super) shape: S,
}

impl<S: Copy> Suited<S> {
    pub(super) const fn suits(&self, rows: usize, widest: usize) -> bool {
        self.min_rows <= rows && rows <= self.max_rows && widest <= self.max_dim
    }

    pub(super) fn map<T>(&self, change: impl Fn(S) -> T) -> Suited<T> {
        let &Self { min_rows, max_rows, max_dim, shape } = self;
        Suited { min_rows, max_rows, max_dim, shape: change(shape) }
    }
}
