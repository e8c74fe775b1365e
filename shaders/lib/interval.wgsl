// Defines: ANY; interval_add, .. interval_select: arithmetic of intervals, ANY where it may overflow; status_of:
//          what a mask shows, from a boolean's interval.
// Expects: SHOWS_*, table(index) -> u32.
// See: src/custom/interval.rs, which emits the calls.

// Least and greatest value of an i32, of a u32 with its bits, or of a bool as 0 and 1.
const ANY: vec2<i32> = vec2<i32>(-2147483647 - 1, 2147483647);

// Most elements of an unsorted table that are read for one interval of indices.
const MOST_READ: u32 = 16u;

fn interval_add(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let sum = a + b;
    let overflows = (a ^ sum) & (b ^ sum);
    return select(sum, ANY, any(overflows < vec2<i32>(0)));
}

fn interval_sub(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let difference = a - b.yx;
    let overflows = (a ^ b.yx) & (a ^ difference);
    return select(difference, ANY, any(overflows < vec2<i32>(0)));
}

fn interval_mul(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let largest_a = max(abs(f32(a.x)), abs(f32(a.y)));
    let largest_b = max(abs(f32(b.x)), abs(f32(b.y)));
    let products = vec4<i32>(a.x * b.x, a.x * b.y, a.y * b.x, a.y * b.y);
    return select(hull(products), ANY, largest_a * largest_b > 2.147483e9);
}

fn hull(all: vec4<i32>) -> vec2<i32> {
    return vec2<i32>(min(min(all.x, all.y), min(all.z, all.w)), max(max(all.x, all.y), max(all.z, all.w)));
}

fn interval_div(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let unknown = (b.x <= 0 && b.y >= 0) || a.x == ANY.x;
    let by = select(b, vec2<i32>(1), unknown);
    return select(hull(vec4<i32>(a.x / by.x, a.x / by.y, a.y / by.x, a.y / by.y)), ANY, unknown);
}

fn interval_rem(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let unknown = b.x != b.y || b.x <= 0;
    let by = select(b.x, 1, unknown);
    let one_block = a.x / by == a.y / by && (a.x >= 0 || a.y <= 0);
    let whole = vec2<i32>(select(0, 1 - by, a.x < 0), select(0, by - 1, a.y > 0));
    // By division, because GL leaves the remainder of a negative number open.
    let rest = a - a / vec2<i32>(by) * by;
    return select(select(whole, rest, one_block), ANY, unknown);
}

fn interval_min(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return min(a, b);
}

fn interval_max(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return max(a, b);
}

fn interval_neg(a: vec2<i32>) -> vec2<i32> {
    return select(-a.yx, ANY, a.x == ANY.x);
}

fn interval_abs(a: vec2<i32>) -> vec2<i32> {
    let positive = vec2<i32>(max(max(a.x, -a.y), 0), max(a.y, -a.x));
    return select(positive, ANY, a.x == ANY.x);
}

fn interval_less(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return vec2<i32>(i32(a.y < b.x), i32(a.x < b.y));
}

fn interval_less_equal(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return vec2<i32>(i32(a.y <= b.x), i32(a.x <= b.y));
}

fn interval_equal(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return vec2<i32>(i32(a.x == a.y && a.x == b.x && a.y == b.y), i32(a.x <= b.y && b.x <= a.y));
}

fn interval_not_equal(a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    return interval_not(interval_equal(a, b));
}

fn interval_not(a: vec2<i32>) -> vec2<i32> {
    return vec2<i32>(1) - a.yx;
}

fn interval_select(c: vec2<i32>, a: vec2<i32>, b: vec2<i32>) -> vec2<i32> {
    let either = vec2<i32>(min(a.x, b.x), max(a.y, b.y));
    return select(select(either, b, c.y == 0), a, c.x == 1);
}

fn interval_low_bits(a: vec2<i32>, mask: i32) -> vec2<i32> {
    return select(vec2<i32>(0, mask), a & vec2<i32>(mask), (a.x & ~mask) == (a.y & ~mask));
}

fn interval_natural(a: vec2<i32>) -> vec2<i32> {
    return select(a, ANY, a.x < 0 || a.y == ANY.y);
}

fn interval_shift_right(a: vec2<i32>, bits: u32) -> vec2<i32> {
    let known = vec2<i32>(bitcast<i32>(bitcast<u32>(a.x) >> bits));
    return select(select(a >> vec2<u32>(bits), ANY, a.x < 0), known, a.x == a.y);
}

// `bits` are those of an operation on a.x and b.x.
fn interval_bits(a: vec2<i32>, b: vec2<i32>, bits: i32) -> vec2<i32> {
    return select(ANY, vec2<i32>(bits), a.x == a.y && b.x == b.y);
}

// First and last place in a table at an interval of indices.
fn places_of(index: vec2<i32>, length: u32) -> vec2<u32> {
    let places = min(vec2<u32>(max(index, vec2<i32>(0))), vec2<u32>(length - 1u));
    // An unknown index may be a u32 beyond the greatest i32.
    return vec2<u32>(places.x, select(places.y, length - 1u, index.y == ANY.y));
}

// Elements of a sorted table at the ends of an interval of indices.
fn interval_ends(index: vec2<i32>, start: u32, length: u32) -> vec2<i32> {
    let places = places_of(index, length);
    return vec2<i32>(bitcast<i32>(table(start + places.x)), bitcast<i32>(table(start + places.y)));
}

fn interval_natural_ends(index: vec2<i32>, start: u32, length: u32) -> vec2<i32> {
    let ends = interval_ends(index, start, length);
    return select(ends, ANY, min(ends.x, ends.y) < 0);
}

// Least and greatest element of a table at an interval of indices, by their bits; ANY if they are more than MOST_READ.
fn interval_elements(index: vec2<i32>, start: u32, length: u32) -> vec2<i32> {
    let places = places_of(index, length);
    if (places.y - places.x >= MOST_READ) {
        return ANY;
    }
    var all = vec2<i32>(bitcast<i32>(table(start + places.x)));
    for (var i = 1u; i < MOST_READ; i++) {
        if (places.x + i > places.y) {
            break;
        }
        let element = bitcast<i32>(table(start + places.x + i));
        all = vec2<i32>(min(all.x, element), max(all.y, element));
    }
    return all;
}

fn status_of(shown: vec2<i32>) -> u32 {
    return select(select(SHOWS_SOME, SHOWS_ALL, shown.x == 1), SHOWS_NONE, shown.y == 0);
}
