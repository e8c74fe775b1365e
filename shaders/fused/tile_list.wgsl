// Defines: main: the list of tiles of which any pair is visible, behind a copy of the tables.
// Expects: lib/*, users_show, tile_bits (read_write); consts LIST_ROWS, LIST_KEYS, USERS_ALONE: no other term masks.
// See: src/terms/tile_list.rs (which heads and items share a list), src/plan/tile_list.rs.
//
// A workgroup makes one word: a tile of rows and 32 tiles of keys. A thread takes a row and every other tile, and leaves a
// tile at its first visible pair, or before if arithmetic tells of the tile. Kernels that follow skip tiles by the bits,
// each of them and for each head of the list.

const THREADS: u32 = 64u;
const THREAD_TILES: u32 = THREADS / LIST_ROWS;

const_assert THREADS % LIST_ROWS == 0u;
const_assert 32u % THREAD_TILES == 0u;

var<workgroup> found: atomic<u32>; // a bit for each tile with a visible pair

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    if (index < params.table_words) {
        tile_bits[index] = table(index);
    }
    let list = tile_list();
    let words = words_of(list);
    let row_tiles = row_tiles_of(list);
    let lists = params.num_heads / list.share;
    let row_tile = workgroup / words % row_tiles;
    let of_head = workgroup / words / row_tiles % lists;
    let batch = workgroup / words / row_tiles / lists;
    if (batch >= select(params.batch, 1u, list.item_words == 0u)) {
        return;
    }
    if (thread == 0u) {
        atomicStore(&found, 0u);
    }
    workgroupBarrier(); // between clearing and setting found
    let item = item_of(batch);
    let row = row_tile * LIST_ROWS + thread % LIST_ROWS;
    if (row < item.rows) {
        let keys = interval_of(item, row);
        let heads = vec2<i32>(i32(of_head * list.share));
        let rows = vec2<i32>(i32(row_tile * LIST_ROWS), i32(min((row_tile + 1u) * LIST_ROWS, item.rows)) - 1);
        var own = 0u;
        for (var tile = thread / LIST_ROWS; tile < 32u; tile += THREAD_TILES) {
            let first = (workgroup % words * 32u + tile) * LIST_KEYS;
            let start = max(first, keys.start);
            let end = min(first + LIST_KEYS, keys.end);
            let columns = vec2<i32>(i32(first), i32(first + LIST_KEYS) - 1);
            let status = users_show(Tile(vec2<i32>(i32(batch)), heads, heads / i32(params.group), rows, columns,
                rows + item.offset, columns, vec2<i32>(i32(item.rows)), vec2<i32>(i32(item.keys))));
            let is_whole = USERS_ALONE && status == SHOWS_ALL;
            own |= select(0u, 1u << tile, is_whole && start < end);
            for (var key = start; key < select(end, 0u, is_whole || status == SHOWS_NONE); key++) {
                if (is_visible(pair_of(item, of_head * list.share, row, key))) {
                    own |= 1u << tile;
                    break;
                }
            }
        }
        atomicOr(&found, own);
    }
    workgroupBarrier(); // between setting and reading found
    if (thread == 0u) {
        tile_bits[line_of(list, batch, of_head, row_tile) + workgroup % words] = atomicLoad(&found);
    }
}
