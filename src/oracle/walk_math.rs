//! WGSL's mathematical functions in f64, with derivatives by the score.

use naga::MathFunction as Math;

use super::walk_value::Value::{self, F32, I32, Parts, U32};
use super::walk_value::{each, times};

/// Number and its derivative.
type Dual = (f64, f64);

pub(super) fn math(fun: Math, arguments: &[Value]) -> Value {
    let duals = |at: usize| -> Vec<Dual> {
        let Parts(parts) = &arguments[at] else { return vec![dual(&arguments[at])] };
        parts.iter().map(dual).collect()
    };
    let whole = |(x, d): Dual| F32(x, d);
    match fun {
        Math::Dot => match &arguments[0] {
            Parts(parts) if !matches!(parts[0], F32(..)) => integer_dot(&arguments[0], &arguments[1]),
            _ => whole(dot(&duals(0), &duals(1))),
        },
        Math::Length => whole(length(&duals(0))),
        Math::Distance => {
            let difference: Vec<Dual> = duals(0).into_iter().zip(duals(1)).map(|((a, da), (b, db))| (a - b, da - db)).collect();
            whole(length(&difference))
        }
        Math::Normalize => {
            let (of, (l, dl)) = (duals(0), length(&duals(0)));
            Parts(of.into_iter().map(|(x, d)| F32(x / l, times(d - times(dl, x / l), 1.0 / l))).collect())
        }
        Math::Cross => {
            let (a, b) = (duals(0), duals(1));
            let product = |(a, da): Dual, (b, db): Dual| (a * b, times(da, b) + times(db, a));
            let part = |i: usize, j: usize| {
                let ((x, dx), (y, dy)) = (product(a[i], b[j]), product(a[j], b[i]));
                F32(x - y, dx - dy)
            };
            Parts(vec![part(1, 2), part(2, 0), part(0, 1)])
        }
        _ => match &arguments[0] {
            Parts(parts) => {
                let nth = |argument: &Value, at: usize| match argument {
                    Parts(parts) => parts[at].clone(),
                    one => one.clone(),
                };
                let component = |at: usize| arguments.iter().map(|argument| nth(argument, at)).collect::<Vec<_>>();
                Parts((0..parts.len()).map(|at| of_numbers(fun, &component(at))).collect())
            }
            _ => of_numbers(fun, arguments),
        },
    }
}

fn dual(value: &Value) -> Dual {
    match value {
        F32(x, d) => (*x, *d),
        other => unreachable!("naga checked the types: {other:?}"),
    }
}

fn dot(a: &[Dual], b: &[Dual]) -> Dual {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, d), (&(a, da), &(b, db))| (sum + a * b, d + times(da, b) + times(db, a)))
}

fn integer_dot(a: &Value, b: &Value) -> Value {
    let (Parts(a), Parts(b)) = (a, b) else { unreachable!("naga checked the types") };
    let bits = |value: &Value| match *value {
        I32(x) => x as u32,
        U32(x) => x,
        ref other => unreachable!("naga checked the types: {other:?}"),
    };
    let sum = a.iter().zip(b).fold(0u32, |sum, (a, b)| sum.wrapping_add(bits(a).wrapping_mul(bits(b))));
    if matches!(a[0], I32(_)) { I32(sum as i32) } else { U32(sum) }
}

fn length(of: &[Dual]) -> Dual {
    if let &[(x, d)] = of {
        return (x.abs(), if x == 0.0 { 0.0 } else { d * x.signum() });
    }
    let (square, d) = dot(of, of);
    (square.sqrt(), times(d, 0.5 / square.sqrt()))
}

fn of_numbers(fun: Math, all: &[Value]) -> Value {
    match all[0] {
        F32(x, d) => of_floats(fun, (x, d), &all[1..]),
        ref one => of_integers(fun, one, &all[1..]),
    }
}

fn of_floats(fun: Math, (x, d): Dual, rest: &[Value]) -> Value {
    let of = |y: f64, slope: f64| F32(y, times(d, slope));
    let next = |at: usize| dual(&rest[at]);
    match fun {
        Math::Abs => of(x.abs(), if x == 0.0 { 0.0 } else { x.signum() }),
        Math::Floor => F32(x.floor(), 0.0),
        Math::Ceil => F32(x.ceil(), 0.0),
        Math::Round => F32(x.round_ties_even(), 0.0),
        Math::Trunc => F32(x.trunc(), 0.0),
        Math::Fract => F32(x - x.floor(), d),
        Math::Sign => F32(if x == 0.0 { 0.0 } else { x.signum() }, 0.0),
        Math::Step => F32(if x <= next(0).0 { 1.0 } else { 0.0 }, 0.0),
        Math::Exp => of(x.exp(), x.exp()),
        Math::Exp2 => of(x.exp2(), std::f64::consts::LN_2 * x.exp2()),
        Math::Log => of(x.ln(), 1.0 / x),
        Math::Log2 => of(x.log2(), std::f64::consts::LOG2_E / x),
        Math::Sqrt => of(x.sqrt(), 0.5 / x.sqrt()),
        Math::InverseSqrt => of(1.0 / x.sqrt(), -0.5 / (x * x.sqrt())),
        Math::Sin => of(x.sin(), x.cos()),
        Math::Cos => of(x.cos(), -x.sin()),
        Math::Tan => of(x.tan(), 1.0 + x.tan().powi(2)),
        Math::Asin => of(x.asin(), 1.0 / (1.0 - x * x).sqrt()),
        Math::Acos => of(x.acos(), -1.0 / (1.0 - x * x).sqrt()),
        Math::Atan => of(x.atan(), 1.0 / (1.0 + x * x)),
        Math::Sinh => of(x.sinh(), x.cosh()),
        Math::Cosh => of(x.cosh(), x.sinh()),
        Math::Tanh => of(x.tanh(), 1.0 - x.tanh().powi(2)),
        Math::Asinh => of(x.asinh(), 1.0 / (x * x + 1.0).sqrt()),
        Math::Acosh => of(x.acosh(), 1.0 / (x * x - 1.0).sqrt()),
        Math::Atanh => of(x.atanh(), 1.0 / (1.0 - x * x)),
        Math::Radians => of(x.to_radians(), 1f64.to_radians()),
        Math::Degrees => of(x.to_degrees(), 1f64.to_degrees()),
        Math::Saturate => duo(limit(limit((x, d), (0.0, 0.0), false), (1.0, 0.0), true)),
        Math::Clamp => duo(limit(limit((x, d), next(0), false), next(1), true)),
        Math::Min => duo(limit((x, d), next(0), true)),
        Math::Max => duo(limit((x, d), next(0), false)),
        Math::Pow => {
            let (e, de) = next(0);
            F32(x.powf(e), times(d, e * x.powf(e - 1.0)) + times(de, x.ln() * x.powf(e)))
        }
        Math::Atan2 => {
            let (b, db) = next(0);
            F32(x.atan2(b), times(times(d, b) - times(db, x), 1.0 / (x * x + b * b)))
        }
        Math::Fma => {
            let ((b, db), (c, dc)) = (next(0), next(1));
            F32(x * b + c, times(d, b) + times(db, x) + dc)
        }
        Math::Mix => {
            let ((b, db), (t, dt)) = (next(0), next(1));
            F32(x + (b - x) * t, d + times(db - d, t) + times(dt, b - x))
        }
        Math::SmoothStep => {
            let ((low, dlow), (high, dhigh), (at, dat)) = ((x, d), next(0), next(1));
            let width = high - low;
            let (share, dshare) = ((at - low) / width, times(dat - dlow - times(dhigh - dlow, (at - low) / width), 1.0 / width));
            let (t, dt) = limit(limit((share, dshare), (0.0, 0.0), false), (1.0, 0.0), true);
            F32(t * t * (3.0 - 2.0 * t), times(dt, 6.0 * t * (1.0 - t)))
        }
        other => unreachable!("refused when the text was read: {other:?}"),
    }
}

fn duo((x, d): Dual) -> Value {
    F32(x, d)
}

/// Smaller or larger of two numbers. Where they are equal, both count half, and beside one that is constant the other not.
fn limit((a, da): Dual, (b, db): Dual, smaller: bool) -> Dual {
    let a_first = if smaller { a < b } else { a > b };
    let b_first = if smaller { b < a } else { b > a };
    match (a_first, b_first) {
        (true, _) => (a, da),
        (_, true) => (b, db),
        _ if da != 0.0 && db != 0.0 => (a, 0.5 * (da + db)),
        _ => (a, 0.0),
    }
}

fn of_integers(fun: Math, one: &Value, rest: &[Value]) -> Value {
    let bits = |value: &Value| match *value {
        I32(x) => x as u32,
        U32(x) => x,
        ref other => unreachable!("naga checked the types: {other:?}"),
    };
    let signed = matches!(one, I32(_));
    let (a, like) = (bits(one), |bits: u32| if signed { I32(bits as i32) } else { U32(bits) });
    let next = |at: usize| bits(&rest[at]);
    let range = |at: usize| {
        let offset = next(at).min(32);
        (offset, next(at + 1).min(32 - offset))
    };
    let low_bits = |count: u32| if count == 32 { u32::MAX } else { (1 << count) - 1 };
    let order = |a: u32, b: u32| if signed { (a as i32).cmp(&(b as i32)) } else { a.cmp(&b) };
    let (least, most) =
        (|a: u32, b: u32| if order(a, b).is_lt() { a } else { b }, |a: u32, b: u32| if order(a, b).is_gt() { a } else { b });
    match fun {
        Math::Abs => like(if signed { (a as i32).wrapping_abs() as u32 } else { a }),
        Math::Min => like(least(a, next(0))),
        Math::Max => like(most(a, next(0))),
        Math::Clamp => like(least(most(a, next(0)), next(1))),
        Math::Sign => like((a as i32).signum() as u32),
        Math::CountOneBits => like(a.count_ones()),
        Math::CountLeadingZeros => like(a.leading_zeros()),
        Math::CountTrailingZeros => like(a.trailing_zeros()),
        Math::ReverseBits => like(a.reverse_bits()),
        Math::FirstTrailingBit => like(if a == 0 { u32::MAX } else { a.trailing_zeros() }),
        Math::FirstLeadingBit => {
            let magnitude = if signed && (a as i32) < 0 { !a } else { a };
            like(if magnitude == 0 { u32::MAX } else { 31 - magnitude.leading_zeros() })
        }
        Math::ExtractBits => {
            let (offset, count) = range(0);
            if count == 0 {
                return like(0);
            }
            let high = a << (32 - count - offset);
            like(if signed { ((high as i32) >> (32 - count)) as u32 } else { high >> (32 - count) })
        }
        Math::InsertBits => {
            let (offset, count) = range(1);
            if count == 0 {
                return like(a);
            }
            let mask = low_bits(count) << offset;
            like(a & !mask | (next(0) << offset) & mask)
        }
        Math::Dot => integer_dot(one, &rest[0]),
        other => unreachable!("refused when the text was read: {other:?}: {:?}", each(one.clone(), |x| x)),
    }
}
