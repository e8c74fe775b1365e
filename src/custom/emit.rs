//! Programs as WGSL: a function of nothing but our own names.

use std::fmt::Write;

use super::program::{Binary, Id, Op, Program, Scalar, Unary};

/// Writes the program as `fn NAME(ARGUMENTS) -> RESULT`. The program's tables are numbered from `first_table` on among
/// those of all users' terms. Expects `Pair`, `params`, `table`, `tanh_exact` and lib/numbers.wgsl.
pub(crate) fn function(text: &mut String, name: &str, arguments: &str, program: &Program, first_table: u32) {
    let result = program.nodes.last().map_or(Scalar::F32, |node| node.ty);
    let _ = writeln!(text, "fn {name}({arguments}) -> {} {{", type_name(result)); // writing to a String does not fail
    for (id, node) in program.nodes.iter().enumerate() {
        let operand = |id: Id| program.nodes[id as usize].ty;
        let value = value(node.op, node.ty, operand, first_table);
        let _ = writeln!(text, "    let v{id} = {value};");
    }
    let _ = writeln!(text, "    return v{};\n}}", program.nodes.len().saturating_sub(1));
}

const fn type_name(ty: Scalar) -> &'static str {
    match ty {
        Scalar::Bool => "bool",
        Scalar::I32 => "i32",
        Scalar::U32 => "u32",
        Scalar::F32 => "f32",
    }
}

fn value(op: Op, ty: Scalar, operand: impl Fn(Id) -> Scalar, first_table: u32) -> String {
    match op {
        Op::Score => "x".into(),
        Op::ScoreAfter => "y".into(),
        Op::Pair(field) => format!("at.{}", field.name()),
        Op::Tile(field, is_last) => format!("at.{}.{}", field.name(), if is_last { "y" } else { "x" }),
        Op::Constant(bits) => constant(ty, bits),
        Op::Length(table) => length(first_table + table),
        Op::Load(table, index) => {
            let table = first_table + table;
            let index = if operand(index) == Scalar::I32 { format!("u32(max(v{index}, 0))") } else { format!("v{index}") };
            let word = format!("table({} + min({index}, {} - 1u))", start(table), length(table));
            if ty == Scalar::U32 { word } else { format!("bitcast<{}>({word})", type_name(ty)) }
        }
        Op::Unary(op, a) => unary(op, a, ty),
        Op::Binary(op, a, b) => binary(op, a, b, operand(a)),
        Op::Select(c, a, b) => format!("select(v{b}, v{a}, v{c})"),
        Op::Convert(a) => match (operand(a), ty) {
            // Conversions of what does not fit, and of NaN, have no defined result on every device.
            (Scalar::F32, Scalar::I32) => {
                format!("i32(clamp(select(v{a}, 0.0, magnitude_bits(v{a}) > INFINITE), -2147483648.0, 2147483520.0))")
            }
            (Scalar::F32, Scalar::U32) => format!("u32(clamp(select(v{a}, 0.0, magnitude_bits(v{a}) > INFINITE), 0.0, 4294967040.0))"),
            _ => format!("{}(v{a})", type_name(ty)),
        },
        Op::Bitcast(a) => format!("bitcast<{}>(v{a})", type_name(ty)),
    }
}

/// Place of a table's first element.
pub(super) fn start(table: u32) -> String {
    format!("params.table_term_tables + params.user_tables[{}].{}", table / 2, ["x", "z"][table as usize % 2])
}

/// Number of elements of a table.
pub(super) fn length(table: u32) -> String {
    format!("params.user_tables[{}].{}", table / 2, ["y", "w"][table as usize % 2])
}

/// A constant. WGSL has no literals of NaN and infinity, and the least i32 is none either.
fn constant(ty: Scalar, bits: u32) -> String {
    match ty {
        Scalar::Bool => (bits != 0).to_string(),
        Scalar::U32 => format!("{bits}u"),
        Scalar::I32 if bits == 1 << 31 => "i32(-2147483647i - 1i)".into(),
        Scalar::I32 => format!("{}i", bits as i32),
        Scalar::F32 if f32::from_bits(bits).is_finite() => format!("{:?}f", f32::from_bits(bits)),
        Scalar::F32 => format!("bitcast<f32>({bits}u | params.zero)"),
    }
}

fn unary(op: Unary, a: Id, ty: Scalar) -> String {
    let name = match op {
        Unary::Neg => return format!("-v{a}"),
        Unary::Not if ty == Scalar::Bool => return format!("!v{a}"),
        Unary::Not => return format!("~v{a}"),
        Unary::Tanh => return format!("tanh_exact(v{a})"),
        Unary::Abs => "abs",
        Unary::Floor => "floor",
        Unary::Ceil => "ceil",
        Unary::Round => "round",
        Unary::Trunc => "trunc",
        Unary::Exp => "exp",
        Unary::Exp2 => "exp2",
        Unary::Log => "log",
        Unary::Log2 => "log2",
        Unary::Sqrt => "sqrt",
        Unary::InverseSqrt => "inverseSqrt",
        Unary::Sin => "sin",
        Unary::Cos => "cos",
        Unary::Tan => "tan",
        Unary::Asin => "asin",
        Unary::Acos => "acos",
        Unary::Atan => "atan",
        Unary::Sinh => "sinh",
        Unary::Cosh => "cosh",
        Unary::Asinh => "asinh",
        Unary::Acosh => "acosh",
        Unary::Atanh => "atanh",
        Unary::CountOneBits => "countOneBits",
        Unary::CountLeadingZeros => "countLeadingZeros",
        Unary::CountTrailingZeros => "countTrailingZeros",
        Unary::ReverseBits => "reverseBits",
    };
    format!("{name}(v{a})")
}

fn binary(op: Binary, a: Id, b: Id, ty: Scalar) -> String {
    let sign = match op {
        Binary::Min => return format!("min(v{a}, v{b})"),
        Binary::Max => return format!("max(v{a}, v{b})"),
        Binary::Pow => return format!("pow(v{a}, v{b})"),
        Binary::Atan2 => return format!("atan2(v{a}, v{b})"),
        Binary::Div | Binary::Rem if ty != Scalar::F32 => {
            let overflows =
                if ty == Scalar::I32 { format!(" | ((v{b} == -1i) & (v{a} == {}))", constant(ty, 1 << 31)) } else { String::new() };
            let divisor = format!("select(v{b}, {}, (v{b} == {}){overflows})", constant(ty, 1), constant(ty, 0));
            return match op {
                Binary::Div => format!("v{a} / {divisor}"),
                // GL leaves the remainder of a negative number open.
                _ => format!("v{a} - v{a} / {divisor} * {divisor}"),
            };
        }
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::Rem => "%",
        Binary::And => "&",
        Binary::Or => "|",
        Binary::Xor if ty == Scalar::Bool => "!=",
        Binary::Xor => "^",
        Binary::ShiftLeft => "<<",
        Binary::ShiftRight => ">>",
        Binary::Equal => "==",
        Binary::NotEqual => "!=",
        Binary::Less => "<",
        Binary::LessEqual => "<=",
    };
    format!("v{a} {sign} v{b}")
}
