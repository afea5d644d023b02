//! Speed.
use super::*;
#[test]
fn zz_speed() {
    let mut source = Source::wal();
    let node = Node::new();
    node.apply(source.change());
    node.fence();
    let mut changes = vec![];
    for k in 0..300 { changes.push(source.run(&format!("insert into t values({k}, randomblob(300));"))); }
    let pages: usize = changes.iter().map(|c| c.pages.len()).sum();
    let t = Instant::now();
    let mut n = 0;
    for _ in 0..30 { for c in &changes { node.apply(c.clone()); n += 1; } }
    let e = t.elapsed();
    eprintln!("wal: {n} applies, {} pages in 300, {:.1} us each", pages, e.as_secs_f64() * 1e6 / f64::from(n));
}
