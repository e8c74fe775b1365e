// Shifted windows of an image: tokens are a grid, WIDTH a row, cut into windows of SIDE x SIDE that are moved by SHIFT;
// windows that the edge cuts stay cut, as Swin's mask has it after the cyclic shift. Swin, every second layer; with
// SHIFT = 0 the others. For self-attention.
// Tables: none.

const WIDTH: i32 = 16;
const SIDE: i32 = 4;
const SHIFT: i32 = 2;

fn window(at: i32) -> i32 {
    return (at + SIDE - SHIFT) / SIDE;
}

fn visible(at: Pair) -> bool {
    let same_row = window(at.row / WIDTH) == window(at.key / WIDTH);
    return same_row && window(at.row % WIDTH) == window(at.key % WIDTH);
}
