use crate::{Options, table::Score};
pub fn run(_: &Options) -> anyhow::Result<Score> { Ok(Score::default()) }
