// Chunked: causal within chunks of CHUNK positions, which do not see each other. Local layers of Llama 4; the same as
// Problem::causal with Problem::chunk(CHUNK).
// Tables: none.

const CHUNK: i32 = 48;

fn visible(at: Pair) -> bool {
    return at.key <= at.position && at.key / CHUNK == at.position / CHUNK;
}
