//! `attn explain` shows the right numbers as text, as JSON and as a picture.

mod common;

use common::{attn, folder, text, text as text_of};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn rounded(value: &Value) -> Vec<f64> {
    floats(value).into_iter().map(|x| (x * 1e4).round() / 1e4).collect()
}

const UNSCALED: [f64; 5] = [0.0763, 0.0763, 0.5637, 0.0763, 0.2074];
const SCALED: [f64; 5] = [0.1257, 0.1257, 0.3989, 0.1257, 0.2239];

#[test]
fn the_worked_example_in_text() {
    for backend in ["cpu", "oracle"] {
        let text = attn(&["explain", "--backend", backend]).ok().out;
        for line in [
            "the row of \"deadlift\": [1, 1, 3, 1, 2]",
            "[0.0763, 0.0763, 0.5637, 0.0763, 0.2074]",
            "[0.1257, 0.1257, 0.3989, 0.1257, 0.2239]",
            "\"to\" has no embedding in this example and is left out.",
            "A popular text prints [0.04, 0.04, 0.66, 0.04, 0.22]",
            "No scale gives that.",
            "deadlift = [0.7486, 0.5246, 0.7486]",
        ] {
            assert!(text.contains(line), "`{line}` is not in: {text}");
        }
    }
}

#[test]
fn the_worked_example_in_json() {
    let told = attn(&["explain", "--backend", "cpu", "--json"]).ok().json();
    assert_eq!(told["tokens"], json!(["She", "wants", "deadlift", "heavy", "weights"]));
    assert_eq!(told["without_embedding"], json!(["to"]));
    assert_eq!(told["focus"]["token"], "deadlift");
    assert_eq!(floats(&told["focus"]["scores_unscaled"]), [1.0, 1.0, 3.0, 1.0, 2.0]);
    assert_eq!(rounded(&told["focus"]["weights_unscaled"]), UNSCALED);
    assert_eq!(rounded(&told["weights"][2]), SCALED);
    assert_eq!(rounded(&told["output"][2]), [0.7486, 0.5246, 0.7486]);
    // Three heads of width 1. Head 1 has the first components, 1 0 1 0 1: deadlift's row is e/(3e+2), 1/(3e+2), ...
    let e = 1f64.exp();
    let (seen, unseen) = (e / (3.0 * e + 2.0), 1.0 / (3.0 * e + 2.0));
    for (got, expected) in floats(&told["heads"][0]["weights"][2]).into_iter().zip([seen, unseen, seen, unseen, seen]) {
        assert!((got - expected).abs() < 1e-6);
    }
    assert_eq!(told["heads_output"], told["layer_output"], "W_O is the identity");
    assert!(told["oracle_largest_difference"].as_f64().expect("a number") < 1e-6);
}

#[test]
fn no_scale_gives_the_popular_numbers() {
    // Softmax of s * [1, 1, 3, 1, 2]: where deadlift has 0.66, weights has 0.19, not 0.22.
    let softmax = |s: f64| {
        let [one, two, three] = [1.0, 2.0, 3.0].map(|score: f64| (s * score).exp());
        let sum = 3.0 * one + two + three;
        [one / sum, two / sum, three / sum]
    };
    let popular = [0.04, 0.22, 0.66];
    let near = |s: f64| softmax(s).iter().zip(popular).all(|(got, said)| (got - said).abs() <= 0.005);
    assert!(!(0..100_000).any(|step| near(f64::from(step) * 1e-4)));
}

#[test]
fn another_sentence_says_what_it_is_made_of() {
    let text = attn(&["explain", "the cat sat on the mat", "--backend", "cpu", "--focus", "cat"]).ok().out;
    assert!(text.contains("Made up") && text.contains("hash") && text.contains("the row of \"cat\""), "{text}");
    let json = || attn(&["explain", "the cat sat on the mat", "--backend", "cpu", "--json"]).ok().json();
    let told = json();
    assert_eq!(told, json(), "the same numbers every time");
    assert_eq!(told["weights"][0], told["weights"][4], "equal words, equal rows");
    for row in told["weights"].as_array().expect("rows") {
        assert!((floats(row).iter().sum::<f64>() - 1.0).abs() < 1e-5);
    }
    // Long sentences are shown as shades without figures.
    attn(&["explain", &"word ".repeat(40), "--backend", "cpu"]).ok();
}

#[test]
fn pictures_are_well_formed() {
    let folder = folder("pictures");
    for (name, sentence, tokens, panels) in [
        ("worked.svg", "She wants to deadlift heavy weights", 5, 4),
        ("hostile.svg", "a<b \"c\" &amp; ]]> \u{1}d\u{ffff} <script>alert(1)</script>", 5, 3),
        ("one.svg", "word", 1, 3),
    ] {
        let path = folder.join(name);
        attn(&["explain", sentence, "--backend", "cpu", "--svg", text(&path)]).ok();
        let svg = std::fs::read_to_string(&path).expect("it was written");
        let document = roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{error} in: {svg}"));
        let root = document.root_element();
        assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
        let cells =
            root.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "rect")) && node.has_children()).count();
        assert_eq!(cells, panels * tokens * tokens, "{name}");
        assert!(!svg.contains("<script") && !svg.contains("href"), "{name} is self-contained");
        let [width, height] =
            ["width", "height"].map(|name| root.attribute(name).and_then(|size| size.parse::<f32>().ok()).expect("a size"));
        for node in root.descendants() {
            let at = |name| node.attribute(name).and_then(|x| x.parse::<f32>().ok()).unwrap_or(0.0);
            assert!(at("x") >= 0.0 && at("x") <= width && at("y") >= 0.0 && at("y") <= height, "{name}: {node:?}");
        }
    }
}

#[test]
fn the_heads_of_a_real_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/minilm/minilm_layer0_block.safetensors");
    let told = attn(&["explain", "--model", path, "--backend", "cpu", "--json"]).ok().json();
    assert_eq!(told["tokens"], json!(["[CLS]", "she", "wants", "to", "dead", "##lift", "heavy", "weights", "[SEP]"]));
    // Probabilities that the model's own code computed, stored in the file.
    let bytes = std::fs::read(path).expect("there");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
    let expected = file.tensor("out.probs").expect("there");
    let expected = expected.data().chunks_exact(4).map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]])));
    let got = told["heads"].as_array().expect("heads").iter();
    let got = got.flat_map(|head| head["weights"].as_array().expect("rows").iter().flat_map(floats)).collect::<Vec<f64>>();
    assert_eq!(got.len(), 12 * 9 * 9);
    for (got, expected) in got.into_iter().zip(expected) {
        assert!((got - expected).abs() <= 2e-5 + 1e-4 * expected.abs(), "{got} instead of {expected}");
    }

    let picture = folder("model").join("heads.svg");
    let text = attn(&["explain", "--model", path, "--backend", "cpu", "--focus", "dead", "--svg", text(&picture)]).ok().out;
    assert!(text.contains("Head 12 of 12") && text.contains("› dead"), "{text}");
    let svg = std::fs::read_to_string(&picture).expect("it was written");
    roxmltree::Document::parse(&svg).expect("well-formed");

    let refused = |more: &[&str], culprits: &[&str]| attn(&[&["explain", "--backend", "cpu"], more].concat()).refused(culprits);
    refused(&["--model", path, "--num-heads", "7"], &["minilm_layer0_block", "7 heads"]);
    refused(&["--model", path, "--num-heads", "0"], &["num_heads"]);
    refused(&["--model", path, "--focus", "lift"], &["--focus", "##lift"]);
    refused(&["--model", path, "a sentence"], &["--model"]);
    refused(&["--model", "nowhere.safetensors"], &["nowhere.safetensors"]);
    refused(&["--layer", "1"], &["--model"]);
    refused(&["--tokens", "a b"], &["--model"]);
    refused(&["--model", path, "--tokens", "a b"], &["--tokens", "2 tokens", "9 rows"]);

    // Labels of the user, as text and as a file with a label per line.
    let labels = folder("labels").join("labels.txt");
    std::fs::write(&labels, "a\nb b\nc\nd\ne\nf\ng\nh\ni\n").expect("written");
    for (tokens, second) in [("a b c d e f g h i", "b"), (text_of(&labels), "b b")] {
        let arguments = ["explain", "--model", path, "--backend", "cpu", "--json", "--tokens", tokens, "--focus", second];
        let told = attn(&arguments).ok().json();
        assert_eq!((&told["tokens"][1], &told["focus"]), (&json!(second), &json!(second)));
    }
}

#[test]
fn words() {
    let told = |sentence: &str| attn(&["explain", sentence, "--backend", "cpu", "--json"]).ok().json()["tokens"].clone();
    assert_eq!(told("she wants to deadlift, heavy weights!"), json!(["She", "wants", "deadlift", "heavy", "weights"]));
    assert_eq!(told("She wants to lift"), json!(["She", "wants", "to", "lift"]));
    assert_eq!(told("a\u{1b}[31mb"), json!(["a[31mb"]));
    attn(&["explain", " ... !"]).refused(&["no words"]);
}

#[test]
fn wide_characters_keep_the_columns() {
    let text = attn(&["explain", "猫 cat ねこねこねこ e\u{301}", "--backend", "cpu"]).ok().out;
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('▓') || line.contains('█') || line.contains('░')).take(4).collect();
    let columns = |text: &str| text.width();
    // Every row of a heat map ends in the same column.
    assert!(rows.len() == 4 && rows.iter().all(|row| columns(row) == columns(rows[0])), "{rows:?}");
}

#[test]
fn bad_input() {
    attn(&["explain", "--svg", "attention.png"]).refused(&["attention.png", ".svg"]);
    attn(&["explain", ""]).refused(&["no words"]);
    attn(&["explain", &"word ".repeat(65)]).refused(&["65 words"]);
    attn(&["explain", "--focus", "lift"]).refused(&["--focus", "`lift`", "deadlift"]);
    attn(&["explain", "--backend", ""]).refused(&["--backend"]);
    attn(&["explain", "--svg", "/nowhere/at/all.svg"]).refused(&["/nowhere/at/all.svg"]);
}
