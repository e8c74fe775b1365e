//! Types flattened to words: number of scalars, and their positions in memory shared with the host.

use naga::{ArraySize, Handle, Module, ScalarKind, Type, TypeInner};

use crate::Error;
use crate::value::Kind;

/// Memory layout of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Scalar after scalar: registers, variables, workgroup memory.
    Flat,
    /// WGSL's alignment rules: buffers.
    Host,
}

/// Returns the kind of a scalar. Errors: the evaluator does not support it.
pub(crate) fn kind_of(scalar: naga::Scalar) -> Result<Kind, Error> {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Bool, _) => Ok(Kind::Bool),
        (ScalarKind::Sint, 4) => Ok(Kind::I32),
        (ScalarKind::Uint, 4) => Ok(Kind::U32),
        (ScalarKind::Float, 4) => Ok(Kind::F32),
        _ => Err(Error::Unsupported(format!("scalars of {} bytes ({:?})", scalar.width, scalar.kind))),
    }
}

/// Returns the number of scalars of a type, one word each, and the kind of a scalar or a vector.
pub(crate) fn words(module: &Module, inner: &TypeInner) -> Result<(u32, Kind), Error> {
    Ok(match *inner {
        TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => (1, kind_of(scalar)?),
        TypeInner::Vector { size, scalar } => (size as u32, kind_of(scalar)?),
        TypeInner::Matrix { columns, rows, scalar } => (columns as u32 * rows as u32, kind_of(scalar)?),
        TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. } => (1, Kind::U32),
        TypeInner::Array { base, size: ArraySize::Constant(count), .. } => (count.get() * of(module, base)?, Kind::U32),
        // The binding's size determines the length of a runtime-sized array.
        TypeInner::Array { size: ArraySize::Dynamic, .. } => (0, Kind::U32),
        TypeInner::Struct { ref members, .. } => {
            (members.iter().map(|member| of(module, member.ty)).sum::<Result<u32, Error>>()?, Kind::U32)
        }
        ref other => return Err(Error::Unsupported(format!("the type {other:?}"))),
    })
}

/// Returns the number of scalars of a type.
pub(crate) fn of(module: &Module, ty: Handle<Type>) -> Result<u32, Error> {
    Ok(words(module, &module.types[ty].inner)?.0)
}

/// Returns the stride of elements, components or columns in words, and their count (`None`: runtime-sized).
pub(crate) fn elements(module: &Module, inner: &TypeInner, layout: Layout) -> Result<(u32, Option<u32>), Error> {
    Ok(match *inner {
        TypeInner::Array { base, size, stride } => {
            let step = if layout == Layout::Host { stride / 4 } else { of(module, base)? };
            match size {
                ArraySize::Constant(count) => (step, Some(count.get())),
                ArraySize::Dynamic => (step, None),
                ArraySize::Pending(_) => return Err(Error::Unsupported("array sizes that are overrides".into())),
            }
        }
        TypeInner::Vector { size, .. } | TypeInner::ValuePointer { size: Some(size), .. } => (1, Some(size as u32)),
        TypeInner::Matrix { columns, rows, .. } => {
            let step = if layout == Layout::Host { (rows as u32).next_power_of_two() } else { rows as u32 };
            (step, Some(columns as u32))
        }
        ref other => return Err(Error::Unsupported(format!("an index into {other:?}"))),
    })
}

/// Returns the number of words before a struct's member, or before an element of any other type.
pub(crate) fn offset(module: &Module, inner: &TypeInner, index: u32, layout: Layout) -> Result<u32, Error> {
    let TypeInner::Struct { members, .. } = inner else { return Ok(elements(module, inner, layout)?.0 * index) };
    match layout {
        Layout::Host => Ok(members[index as usize].offset / 4),
        Layout::Flat => members[..index as usize].iter().map(|member| of(module, member.ty)).sum(),
    }
}

/// Returns the word of each scalar of a value in memory.
pub(crate) fn leaves(module: &Module, inner: &TypeInner, layout: Layout) -> Result<Vec<u32>, Error> {
    if layout == Layout::Flat {
        return Ok((0..words(module, inner)?.0).collect());
    }
    let nested = |first: u32, ty: Handle<Type>| -> Result<Vec<u32>, Error> {
        Ok(leaves(module, &module.types[ty].inner, layout)?.into_iter().map(|leaf| first + leaf).collect())
    };
    Ok(match *inner {
        TypeInner::Struct { ref members, .. } => {
            members.iter().map(|member| nested(member.offset / 4, member.ty)).collect::<Result<Vec<_>, _>>()?.concat()
        }
        TypeInner::Array { base, size: ArraySize::Constant(count), stride } => {
            (0..count.get()).map(|element| nested(element * stride / 4, base)).collect::<Result<Vec<_>, _>>()?.concat()
        }
        TypeInner::Matrix { columns, rows, .. } => {
            let step = (rows as u32).next_power_of_two();
            (0..columns as u32).flat_map(|column| (0..rows as u32).map(move |row| column * step + row)).collect()
        }
        _ => (0..words(module, inner)?.0).collect(),
    })
}
