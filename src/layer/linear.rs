//! Projection of a layer.

use super::matmul::matmul;
use crate::error::{Error, Result};
use crate::gpu::Projection;

/// Projection Y = X·Wᵀ + b with W `[out_features, in_features]` and b `[out_features]`, as in PyTorch's `nn.Linear`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    in_features: usize,
}

impl Linear {
    /// Creates a projection from W in row-major order, and b. Errors: `weight` is not whole rows, b does not fit them.
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, in_features: usize) -> Result<Self> {
        if in_features == 0 || weight.is_empty() || !weight.len().is_multiple_of(in_features) {
            return Err(Error::invalid("weight", format!("{} numbers are not rows of {in_features}, one or more", weight.len())));
        }
        if let Some(bias) = &bias
            && bias.len() != weight.len() / in_features
        {
            let rows = weight.len() / in_features;
            return Err(Error::invalid("bias", format!("has {} numbers, the weight has {rows} rows", bias.len())));
        }
        Ok(Self { weight, bias, in_features })
    }

    /// W, in row-major order.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// b, if there is one.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Width of X: the columns of W.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Width of Y: the rows of W.
    pub fn out_features(&self) -> usize {
        self.weight.len() / self.in_features
    }

    /// Borrowed form that the GPU takes.
    pub(super) fn projection(&self) -> Projection<'_> {
        Projection { weight: &self.weight, bias: self.bias(), in_features: self.in_features }
    }

    /// Computes Y for X [rows, in_features], on every core.
    pub fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        if !x.len().is_multiple_of(self.in_features) {
            return Err(Error::invalid("x", format!("{} numbers are not rows of {}", x.len(), self.in_features)));
        }
        Ok(matmul(x, &self.weight, self.bias(), self.in_features, self.out_features()))
    }
}
