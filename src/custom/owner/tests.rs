//! Owners of tables: which indices they allow, and what is said of others.

use crate::custom::{Owner, Table, Term};
use crate::error::{Error, Result};
use crate::problem::{Alignment, Dims, Problem, WantGradients};

fn read(body: &str, owner: Owner) -> Result<Term> {
    let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return {body}; }}");
    Term::with_tables(&text, &[Table::f32("t", 64).owner(owner), Table::i32("ids", 8)])
}

fn why(result: Result<Term>) -> String {
    match result {
        Err(Error::Invalid { why, .. }) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn indices_change_with_their_owners_alone() {
    // The owners that an index allows; Pair always does.
    for (index, owners) in [
        ("3", &[Owner::Scalar, Owner::Head, Owner::Row, Owner::Key, Owner::Distance][..]),
        ("ids[0] + i32(arrayLength(&t))", &[Owner::Scalar, Owner::Head, Owner::Row, Owner::Key, Owner::Distance]),
        ("at.head * 4 + at.batch", &[Owner::Head, Owner::Row, Owner::Key, Owner::Distance]),
        ("at.kv_head + at.len_kv", &[Owner::Head, Owner::Row, Owner::Key, Owner::Distance]),
        ("at.row", &[Owner::Row]),
        ("at.position / 3 + ids[at.head]", &[Owner::Row]),
        ("at.row + (at.key - at.key_position)", &[Owner::Row]),
        ("ids[at.key]", &[Owner::Key]),
        ("i32(sqrt(f32(at.key)))", &[Owner::Key]),
        ("at.position - at.key", &[Owner::Distance]),
        ("abs(2 * at.key + 7 - at.row * 2) % 5 + at.head", &[Owner::Distance]),
        ("at.head * 8 + select(0, 4, at.position > at.key)", &[]),
        ("at.head * 8 + select(0, 4, at.position - at.key > 0)", &[Owner::Distance]),
        ("at.row + at.key", &[]),
        ("at.row * at.row - at.row * at.row + at.key * 0", &[Owner::Row]),
    ] {
        for owner in Owner::ALL {
            let term = read(&format!("x + t[{index}]"), owner);
            let allowed = owner == Owner::Pair || owners.contains(&owner);
            assert_eq!(term.is_ok(), allowed, "{index} by {owner:?}: {term:?}");
        }
    }
    read("x + t[at.head] * t[at.head] + select(t[at.head], 0.0, at.key == 1)", Owner::Head).expect("one index");
}

#[test]
fn what_is_refused_is_named() {
    let refused = why(read("x +\n t[at.key + at.head]", Owner::Head));
    assert!(refused.starts_with("line 2, column"), "{refused}");
    assert!(refused.contains("`t`") && refused.contains("Owner::Head") && refused.ends_with("say Owner::Key"), "{refused}");
    let refused = why(read("x + t[0] * t[at.head]", Owner::Head));
    assert!(refused.contains("second index") && refused.ends_with("leave the owner out"), "{refused}");
    assert!(why(read("x + t[i32(x)]", Owner::Pair)).contains("changes with the score"));
    assert!(why(read("x", Owner::Head)).contains("does not depend on it"));
    assert!(why(read("x + bitcast<f32>(bitcast<u32>(t[0]))", Owner::Scalar)).contains("bitcast of the table's element"));
    let integers =
        Term::with_tables("fn score(x: f32, at: Pair) -> f32 { return x + f32(t[0]); }", &[Table::i32("t", 4).owner(Owner::Scalar)]);
    assert!(why(integers).contains("integers have no gradient"));
    let mask = "fn visible(at: Pair) -> bool { return t[0] > 0.0; } fn score(x: f32, at: Pair) -> f32 { return x + t[0]; }";
    assert!(why(Term::with_tables(mask, &[Table::f32("t", 4).owner(Owner::Scalar)])).contains("`visible`"));
}

#[test]
fn gradients_are_of_owned_tables() {
    let problem = Problem::new(Dims::self_attention(1, 2, 4, 8)).aligned(Alignment::TopLeft);
    let want = WantGradients { term_tables: true, ..WantGradients::default() };
    let text = "fn score(x: f32, at: Pair) -> f32 { return x + t[at.head]; }";
    let without = problem.clone().with_term(Term::with_tables(text, &[Table::f32("t", 2)]).expect("valid"));
    let Err(Error::Invalid { argument: "term_tables", why }) = want.check(&without) else { panic!("it has no owner") };
    assert!(why.contains("`t`") && why.contains(".owner(Owner::Head)"), "{why}");
    assert!(!WantGradients::all(&without).term_tables);
    assert!(want.check(&problem).is_err());
    let with = problem.with_term(Term::with_tables(text, &[Table::f32("t", 2).owner(Owner::Head)]).expect("valid"));
    assert!(WantGradients::all(&with).term_tables && want.check(&with).is_ok());
    assert_eq!(with.d_term_table(&[1.0, 2.0], "t"), Ok(&[1.0, 2.0][..]));
    assert!(with.d_term_table(&[1.0], "t").is_err() && with.d_term_table(&[1.0, 2.0], "u").is_err());
}

#[test]
fn pairs_own_what_is_indexed_like_a_bias() {
    let dims = Dims { num_heads: 2, num_kv_heads: 2, seq_len_q: 3, seq_len_kv: 5, ..Dims::self_attention(2, 2, 3, 8) };
    let problem = Problem::new(dims).aligned(Alignment::BottomRight);
    let strides = |problem: &Problem, index: &str| {
        let problem = problem.clone().with_term(read(&format!("x + t[{index}]"), Owner::Pair).expect("valid"));
        let table = problem.owned_tables().next().expect("it is there");
        problem.strides_of(&table).map(|strides| (strides.start, strides.axes))
    };
    for (index, expected) in [
        ("at.row * 5 + at.key", Some((0, [0, 0, 5, 1]))),
        ("(at.batch * 2 + at.head) * 15 + at.row + at.key * 3 + 4", Some((4, [30, 15, 1, 3]))),
        ("at.row * at.len_kv + at.key_position", Some((0, [0, 0, 5, 1]))),
        ("(at.position + 1) * 8 + at.key", Some((24, [0, 0, 8, 1]))),
        ("40 - at.row * 5 - at.key", Some((40, [0, 0, -5, -1]))),
        ("u32(at.row * 5) + u32(at.key)", Some((0, [0, 0, 5, 1]))),
        ("min(at.row * 5 + at.key, 20)", Some((0, [0, 0, 5, 1]))),
        // Two pairs for one element; elements outside; no sums.
        ("at.row * 4 + at.key", None),
        ("at.row + at.key", None),
        ("at.row * 40 + at.key", None),
        ("at.row * 5 + at.key - 1", None),
        ("min(at.row * 5 + at.key, 7)", None),
        ("at.row * 5 + at.key / 2", None),
        ("at.row * at.key", None),
    ] {
        assert_eq!(strides(&problem, index), expected, "{index}");
    }
    let mut padded = problem;
    padded.visibility.kv_lengths = true;
    assert_eq!(strides(&padded, "(at.position + 1) * 8 + at.key"), None, "positions differ from item to item");
    assert!(strides(&padded, "at.row * 8 + at.key").is_some());
}
