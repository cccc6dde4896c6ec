use crate::Patience;

fn attempts(pages: impl Iterator<Item = u64>) -> usize {
    pages
        .scan(Some(Patience::NEW), |patience, left| {
            *patience = patience.and_then(|patience| patience.after_failure(left));
            *patience
        })
        .count()
}

#[test]
fn a_victim_that_keeps_its_pages_is_given_up() {
    // The first look is how one knows what there was.
    assert_eq!(attempts(core::iter::repeat(1000)), 10);
}

#[test]
fn one_that_gives_them_back_slowly_is_waited_for() {
    let slowly = (0..100).rev().flat_map(|left| core::iter::repeat_n(left, 9));
    assert_eq!(attempts(slowly), 900);
}

#[test]
fn pages_that_come_and_go_do_not_count_as_given_back() {
    let pages = [10, 5].into_iter().chain([9, 8, 7, 6].into_iter().cycle());
    assert_eq!(attempts(pages), 11);
}
