// Neighbourhood of an image: tokens are a grid, WIDTH a row; each sees the KERNEL x KERNEL tokens around it, moved
// inwards at the edges so that all see equally many. NATTEN. For self-attention.
// Tables: none.

const WIDTH: i32 = 16;
const KERNEL: i32 = 5;

fn near(row: i32, key: i32, size: i32) -> bool {
    let start = clamp(row - KERNEL / 2, 0, size - KERNEL);
    return key >= start && key < start + KERNEL;
}

fn visible(at: Pair) -> bool {
    let height = at.len_kv / WIDTH;
    return near(at.row / WIDTH, at.key / WIDTH, height) && near(at.row % WIDTH, at.key % WIDTH, WIDTH);
}
