//! WGSL's mathematical built-in functions.

use half::f16;
use naga::MathFunction as Math;

use crate::eval::{Call, Report};
use crate::report::Rule;
use crate::value::{Kind, Value};

/// True if the evaluator supports the function.
pub(crate) const fn is_supported(fun: Math) -> bool {
    !matches!(
        fun,
        Math::Modf
            | Math::Frexp
            | Math::Ldexp
            | Math::Dot4I8Packed
            | Math::Dot4U8Packed
            | Math::Outer
            | Math::FaceForward
            | Math::Reflect
            | Math::Refract
            | Math::Inverse
            | Math::Transpose
            | Math::Determinant
            | Math::Pack4x8snorm
            | Math::Pack4x8unorm
            | Math::Pack2x16snorm
            | Math::Pack2x16unorm
            | Math::Pack4xI8
            | Math::Pack4xU8
            | Math::Pack4xI8Clamp
            | Math::Pack4xU8Clamp
            | Math::Unpack4x8snorm
            | Math::Unpack4x8unorm
            | Math::Unpack2x16snorm
            | Math::Unpack2x16unorm
            | Math::Unpack4xI8
            | Math::Unpack4xU8
    )
}

/// Evaluates a function that [`is_supported`].
pub(crate) fn run(call: &mut Call<'_>, fun: Math, args: &[Value], report: &mut Report<'_>) {
    let kind = args[0].kind;
    match fun {
        Math::Abs | Math::Min | Math::Max | Math::Clamp | Math::Sign => compare(call, fun, kind, args),
        Math::Dot | Math::Length | Math::Distance | Math::Normalize | Math::Cross => geometry(call, fun, kind, args),
        Math::Fma => call.zip3_f32([args[0], args[1], args[2]], f32::mul_add),
        Math::Mix => call.zip3_f32([args[0], args[1], args[2]], |a, b, t| a * (1.0 - t) + b * t),
        Math::SmoothStep => call.zip3_f32([args[0], args[1], args[2]], |low, high, x| {
            let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
            t * t * (3.0 - 2.0 * t)
        }),
        Math::Step => call.zip_f32(args[0], args[1], |edge, x| if edge <= x { 1.0 } else { 0.0 }),
        Math::Pow => call.zip_f32(args[0], args[1], f32::powf),
        Math::Atan2 => call.zip_f32(args[0], args[1], f32::atan2),
        Math::Pack2x16float => pack_f16(call, args[0], report),
        Math::Unpack2x16float => call.by_lane(args, |args, to| {
            to[0] = f16::from_bits(args[0][0] as u16).to_f32().to_bits();
            to[1] = f16::from_bits((args[0][0] >> 16) as u16).to_f32().to_bits();
        }),
        Math::ExtractBits | Math::InsertBits => bit_fields(call, fun, kind, args),
        Math::CountTrailingZeros => call.map(args[0], u32::trailing_zeros),
        Math::CountLeadingZeros => call.map(args[0], u32::leading_zeros),
        Math::CountOneBits => call.map(args[0], u32::count_ones),
        Math::ReverseBits => call.map(args[0], u32::reverse_bits),
        Math::FirstTrailingBit => call.map(args[0], |x| if x == 0 { u32::MAX } else { x.trailing_zeros() }),
        Math::FirstLeadingBit => call.map(args[0], |x| {
            let x = if kind == Kind::I32 && (x as i32) < 0 { !x } else { x };
            if x == 0 { u32::MAX } else { 31 - x.leading_zeros() }
        }),
        _ => {
            if let Some(f) = of_one(fun) {
                call.map_f32(args[0], f);
            }
        }
    }
}

/// Returns a function of one f32, if `fun` is one.
fn of_one(fun: Math) -> Option<fn(f32) -> f32> {
    Some(match fun {
        Math::Saturate => |x| x.clamp(0.0, 1.0),
        Math::Cos => f32::cos,
        Math::Cosh => f32::cosh,
        Math::Sin => f32::sin,
        Math::Sinh => f32::sinh,
        Math::Tan => f32::tan,
        Math::Tanh => f32::tanh,
        Math::Acos => f32::acos,
        Math::Asin => f32::asin,
        Math::Atan => f32::atan,
        Math::Asinh => f32::asinh,
        Math::Acosh => f32::acosh,
        Math::Atanh => f32::atanh,
        Math::Radians => f32::to_radians,
        Math::Degrees => f32::to_degrees,
        Math::Ceil => f32::ceil,
        Math::Floor => f32::floor,
        Math::Round => f32::round_ties_even,
        Math::Fract => |x| x - x.floor(),
        Math::Trunc => f32::trunc,
        Math::Exp => f32::exp,
        Math::Exp2 => f32::exp2,
        Math::Log => f32::ln,
        Math::Log2 => f32::log2,
        Math::Sqrt => f32::sqrt,
        Math::InverseSqrt => |x| 1.0 / x.sqrt(),
        Math::QuantizeToF16 => |x| f16::from_f32(x).to_f32(),
        _ => return None,
    })
}

fn compare(call: &mut Call<'_>, fun: Math, kind: Kind, args: &[Value]) {
    match (fun, kind) {
        (Math::Abs, Kind::F32) => call.map_f32(args[0], f32::abs),
        (Math::Abs, Kind::I32) => call.map(args[0], |x| (x as i32).wrapping_abs() as u32),
        (Math::Abs, _) => call.map(args[0], |x| x),
        (Math::Sign, Kind::F32) => call.map_f32(args[0], |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        }),
        (Math::Sign, _) => call.map(args[0], |x| (x as i32).signum() as u32),
        (Math::Min, Kind::F32) => call.zip_f32(args[0], args[1], f32::min),
        (Math::Max, Kind::F32) => call.zip_f32(args[0], args[1], f32::max),
        (Math::Min, Kind::I32) => call.zip(args[0], args[1], |a, b| (a as i32).min(b as i32) as u32),
        (Math::Max, Kind::I32) => call.zip(args[0], args[1], |a, b| (a as i32).max(b as i32) as u32),
        (Math::Min, _) => call.zip(args[0], args[1], u32::min),
        (Math::Max, _) => call.zip(args[0], args[1], u32::max),
        (_, Kind::F32) => call.zip3_f32([args[0], args[1], args[2]], |x, low, high| x.max(low).min(high)),
        (_, Kind::I32) => call.zip3([args[0], args[1], args[2]], |x, low, high| (x as i32).max(low as i32).min(high as i32) as u32),
        _ => call.zip3([args[0], args[1], args[2]], |x, low, high| x.max(low).min(high)),
    }
}

fn geometry(call: &mut Call<'_>, fun: Math, kind: Kind, args: &[Value]) {
    let numbers = |words: &[u32]| words.iter().map(|&word| f32::from_bits(word)).collect::<Vec<f32>>();
    let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    call.by_lane(args, |args, to| match (fun, kind) {
        (Math::Dot, Kind::I32 | Kind::U32) => {
            to[0] = args[0].iter().zip(&args[1]).fold(0, |sum: u32, (&a, &b)| sum.wrapping_add(a.wrapping_mul(b)));
        }
        (Math::Dot, _) => to[0] = numbers(&args[0]).iter().zip(numbers(&args[1])).map(|(a, b)| a * b).sum::<f32>().to_bits(),
        (Math::Length, _) => to[0] = length(&numbers(&args[0])).to_bits(),
        (Math::Distance, _) => {
            let difference: Vec<f32> = numbers(&args[0]).iter().zip(numbers(&args[1])).map(|(a, b)| a - b).collect();
            to[0] = length(&difference).to_bits();
        }
        (Math::Normalize, _) => {
            let x = numbers(&args[0]);
            to.iter_mut().zip(&x).for_each(|(to, x_i)| *to = (x_i / length(&x)).to_bits());
        }
        _ => {
            let (a, b) = (numbers(&args[0]), numbers(&args[1]));
            to.iter_mut().enumerate().for_each(|(i, to)| {
                let (j, k) = ((i + 1) % 3, (i + 2) % 3);
                *to = (a[j] * b[k] - a[k] * b[j]).to_bits();
            });
        }
    });
}

/// Packs two numbers into f16. Reports numbers out of range, whose result WGSL does not define.
fn pack_f16(call: &mut Call<'_>, pair: Value, report: &mut Report<'_>) {
    let bad = |x: u32, _| (f32::from_bits(x).abs() > 65504.0).then(|| format!("of {:e} to f16", f32::from_bits(x)));
    call.check(Rule::Conversion, pair, pair, bad, report);
    let half = |x: u32| u32::from(f16::from_f32(f32::from_bits(x)).to_bits());
    call.by_lane(&[pair], |args, to| to[0] = half(args[0][0]) | half(args[0][1]) << 16);
}

fn bit_fields(call: &mut Call<'_>, fun: Math, kind: Kind, args: &[Value]) {
    let field = |offset: u32, count: u32| {
        let offset = offset.min(32);
        (offset, count.min(32 - offset))
    };
    let ones = |count: u32| if count == 32 { u32::MAX } else { (1 << count) - 1 };
    call.by_lane(args, |args, to| {
        for (word, to) in to.iter_mut().enumerate() {
            let x = args[0][word];
            if fun == Math::ExtractBits {
                let (offset, count) = field(args[1][0], args[2][0]);
                let bits = x.checked_shr(offset).unwrap_or(0) & ones(count);
                let negative = kind == Kind::I32 && count > 0 && bits >> (count - 1) & 1 == 1;
                *to = if negative { bits | !ones(count) } else { bits };
            } else {
                let (offset, count) = field(args[2][0], args[3][0]);
                let bits = ones(count).checked_shl(offset).unwrap_or(0);
                *to = (x & !bits) | (args[1][word].checked_shl(offset).unwrap_or(0) & bits);
            }
        }
    });
}
