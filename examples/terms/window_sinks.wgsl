// Sliding window with sinks: the last WINDOW keys and the first SINKS, which take the weight that has nowhere else to
// go. StreamingLLM.
// Tables: none.

const WINDOW: i32 = 64;
const SINKS: i32 = 4;

fn visible(at: Pair) -> bool {
    let distance = at.position - at.key;
    return distance >= 0 && (distance < WINDOW || at.key < SINKS);
}
