/// So many of a hundred of these, which are in order, are no greater; `None` of none.
pub fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied()
}
