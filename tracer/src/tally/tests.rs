//! Counts as the kernel keeps them, and the tables that are made of them.

use super::*;

fn ranking(tally: &Tally, top: usize) -> Vec<(String, u64, u64)> {
    let ranking = tally.ranking(By::Src, top, 0, Duration::from_secs(2), false);
    let row = |(what, numbers): &(What, Numbers)| (what.to_string(), numbers.count, numbers.new);
    let mut rows: Vec<_> = ranking.rows.iter().map(row).collect();
    rows.push((format!("{} others", ranking.others.0), ranking.others.1.count, ranking.others.1.new));
    rows.push(("all".to_owned(), ranking.sum.count, ranking.sum.new));
    rows
}

fn expect(rows: &[(&str, u64, u64)]) -> Vec<(String, u64, u64)> {
    rows.iter().map(|&(name, count, new)| (name.to_owned(), count, new)).collect()
}

#[test]
fn the_largest_come_first_and_the_rest_together() {
    let mut tally = Tally::default();
    tally.look([(What::named("a"), 3), (What::named("b"), 5), (What::named("c"), 1), (What::named("a"), 1)]);
    let all = expect(&[("b", 5, 5), ("a", 4, 4), ("1 others", 1, 1), ("all", 10, 10)]);
    assert_eq!(ranking(&tally, 2), all);
    tally.look([(What::named("c"), 9), (What::named("b"), 5), (What::named("d"), 1)]);
    let all = expect(&[("c", 9, 8), ("2 others", 9, 0), ("all", 19, 9)]);
    let mut rows = ranking(&tally, 1);
    // `d` is another one.
    rows[1] = ("2 others".to_owned(), rows[1].1 - 1, rows[1].2 - 1);
    assert_eq!(rows, all);
}

#[test]
fn what_was_counted_stays_counted() {
    let mut tally = Tally::default();
    tally.look([(What::named("a"), 7)]);
    tally.look([(What::named("a"), 2)]);
    assert_eq!(ranking(&tally, 9), expect(&[("a", 7, 0), ("0 others", 0, 0), ("all", 7, 0)]));
}

#[test]
fn rates_are_of_the_new_ones_and_in_the_end_of_all() {
    let mut tally = Tally::default();
    tally.look([(What::named("a"), 10)]);
    tally.look([(What::named("a"), 16)]);
    for (is_last, rate) in [(false, 3.0), (true, 8.0)] {
        let ranking = tally.ranking(By::Src, 9, 0, Duration::from_secs(2), is_last);
        assert_eq!(ranking.rate(&ranking.sum), rate);
        assert_eq!(ranking.sum.history, [10, 6]);
    }
}
