//! Parts of values and variables: fields, components and elements, at constant and computed indices.

use naga::{Expression, Function, Handle, LocalVariable, TypeInner};

use super::builder::Builder;
use super::lower::{Found, Frame, Index, Lowering, Result, Step, VISIT};
use super::program::{Binary, Id, Scalar};

impl<'a> Lowering<'a> {
    /// Writes to a part of a variable; with computed indices by selections for every element.
    pub(super) fn store(&mut self, frame: &mut Frame<'a>, variable: Handle<LocalVariable>, step: &Step, value: &[Id]) {
        let Some(all) = frame.locals.get_mut(&variable) else { return };
        let all_places = step.indices.iter().map(|index| index.count).product::<usize>();
        self.work += all_places * value.len();
        for nth in 0..all_places {
            let (mut rest, mut place, mut here) = (nth, step.start, self.builder.bool(true));
            for index in &step.indices {
                let is = equals(&mut self.builder, index.id, rest % index.count);
                here = self.builder.and(here, is);
                place += rest % index.count * index.stride;
                rest /= index.count;
            }
            for (to, &value) in all[place..].iter_mut().zip(value) {
                *to = self.builder.select(here, value, *to);
            }
        }
    }

    /// Reads a part of a variable.
    pub(super) fn load_local(&mut self, frame: &Frame<'a>, variable: Handle<LocalVariable>, step: &Step, len: usize) -> Vec<Id> {
        frame.locals.get(&variable).map_or_else(Vec::new, |all| self.load(all, step.start, &step.indices, len))
    }

    /// Reads some scalars of a value; with computed indices by selections.
    fn load(&mut self, all: &[Id], start: usize, indices: &[Index], len: usize) -> Vec<Id> {
        let Some((index, rest)) = indices.split_first() else { return all[start..start + len].to_vec() };
        let mut value = self.load(all, start, rest, len);
        self.work += index.count * len;
        for element in 1..index.count {
            let here = equals(&mut self.builder, index.id, element);
            let other = self.load(all, start + element * index.stride, rest, len);
            value = self.chosen(here, &other, &value);
        }
        value
    }

    /// Clamps an index below `count`.
    fn clamped(&mut self, index: Id, count: usize) -> Id {
        let ty = self.builder.ty(index);
        let (zero, last) = (self.builder.constant(ty, 0), self.builder.constant(ty, count.saturating_sub(1) as u32));
        let index = if ty == Scalar::I32 { self.builder.binary(Binary::Max, index, zero) } else { index };
        self.builder.binary(Binary::Min, index, last)
    }

    /// A field, or an element whose index is a constant.
    pub(super) fn part(&mut self, frame: &mut Frame<'a>, base: Handle<Expression>, index: usize) -> Result<Found> {
        let found = self.found(frame, base)?;
        if let Found::Table(table) = found {
            let index = self.builder.constant(Scalar::U32, index as u32);
            return Ok(Found::Element(table, index));
        }
        let mut work = 0;
        let (start, len) = match self.inner(frame, base)? {
            TypeInner::Struct { members, .. } => {
                let lens = members.iter().map(|member| Ok(self.scalars(member.ty)?.len())).collect::<Result<Vec<_>>>()?;
                work = VISIT * lens.len();
                (lens[..index].iter().sum(), lens[index])
            }
            _ => {
                let (len, _) = self.elements(frame, base)?;
                (index * len, len)
            }
        };
        self.work += work + len;
        match found {
            Found::Value(value) => Ok(Found::Value(value[start..start + len].to_vec())),
            Found::Local { variable, first, .. } => Ok(Found::Local { variable, first: Step { start: first.start + start, ..first }, len }),
            Found::Table(_) | Found::Element(..) => self.refuse("indexes a number"),
        }
    }

    /// An element whose index is computed.
    pub(super) fn element(&mut self, frame: &mut Frame<'a>, base: Handle<Expression>, index: Handle<Expression>) -> Result<Found> {
        let index = self.value(frame, index)?[0];
        let found = self.found(frame, base)?;
        if let Found::Table(table) = found {
            return Ok(Found::Element(table, index));
        }
        let (stride, count) = self.elements(frame, base)?;
        let id = self.clamped(index, count);
        let (start, indices) = match self.builder.constant_of(id) {
            Some(index) => (index as usize * stride, vec![]),
            None => (0, vec![Index { id, stride, count }]),
        };
        match found {
            Found::Value(value) => Ok(Found::Value(self.load(&value, start, &indices, stride))),
            Found::Local { variable, mut first, .. } => {
                first.start += start;
                first.indices.extend(indices);
                Ok(Found::Local { variable, first, len: stride })
            }
            Found::Table(_) | Found::Element(..) => self.refuse("indexes a number"),
        }
    }

    /// Scalars in each element of an array or vector, and their number.
    fn elements(&self, frame: &Frame<'a>, base: Handle<Expression>) -> Result<(usize, usize)> {
        match *self.inner(frame, base)? {
            TypeInner::Vector { size, .. } | TypeInner::ValuePointer { size: Some(size), .. } => Ok((1, size as usize)),
            TypeInner::Array { base, size: naga::ArraySize::Constant(count), .. } => Ok((self.scalars(base)?.len(), count.get() as usize)),
            _ => self.refuse("indexes what is neither a vector nor an array"),
        }
    }

    /// Type of an expression; of a pointer, what it points to.
    fn inner(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> Result<&TypeInner> {
        let Some(types) = self.types.get(&std::ptr::from_ref(frame.function)) else {
            return self.refuse("has an expression without a type");
        };
        Ok(match types.get(handle, &self.module.types) {
            TypeInner::Pointer { base, .. } => &self.module.types[*base].inner,
            inner => inner,
        })
    }

    /// Finds the types of a function's expressions.
    pub(super) fn find_types(&mut self, function: &Function) -> Result<()> {
        let key = std::ptr::from_ref(function);
        if self.types.contains_key(&key) {
            return Ok(());
        }
        let mut types = naga::front::Typifier::new();
        let context = naga::proc::ResolveContext::with_locals(self.module, &function.local_variables, &function.arguments);
        for (handle, _) in function.expressions.iter() {
            if types.grow(handle, &function.expressions, &context).is_err() {
                return self.refuse("has an expression without a type");
            }
        }
        self.types.insert(key, types);
        Ok(())
    }
}

/// Condition that a clamped index is `element`.
fn equals(builder: &mut Builder, index: Id, element: usize) -> Id {
    let element = builder.constant(builder.ty(index), element as u32);
    builder.binary(Binary::Equal, index, element)
}
