//! A bounded cache of what is costly to make: resolvers, TLS configurations, regular expressions.
//!
//! Two generations: when the young one is full it becomes the old one, and what was in neither is made anew. So it holds at most
//! twice its bound, what is used stays, and there is no list to keep in order.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

/// Values by key; values are cheap to clone. What is in it shows in no debug output: keys and values may hold secrets.
pub(crate) struct Cache<K, V> {
    generations: Mutex<Generations<K, V>>,
    young_max: usize,
}

struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("young_max", &self.young_max).finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    /// At most `young_max` entries in each of two generations.
    pub(crate) fn new(young_max: usize) -> Cache<K, V> {
        Cache { generations: Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() }), young_max }
    }

    /// What is cached under a key.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
    {
        let mut all = self.generations.lock().ok()?;
        if let Some(value) = all.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = all.old.remove_entry(key)?;
        self.insert(&mut all, key, value.clone());
        Some(value)
    }

    /// Caches a value.
    pub(crate) fn put(&self, key: K, value: V) {
        if let Ok(mut all) = self.generations.lock() {
            self.insert(&mut all, key, value);
        }
    }

    /// Forgets a value.
    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Ok(mut all) = self.generations.lock() {
            all.young.remove(key);
            all.old.remove(key);
        }
    }

    /// What is cached, or what `make` makes, which is then cached unless it failed.
    pub(crate) fn get_or<Q: Eq + Hash + ToOwned<Owned = K> + ?Sized, E>(&self, key: &Q, make: impl FnOnce() -> Result<V, E>) -> Result<V, E>
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(value) = self.get(key) {
            return Ok(value);
        }
        let value = make()?;
        self.put(key.to_owned(), value.clone());
        Ok(value)
    }

    fn insert(&self, all: &mut Generations<K, V>, key: K, value: V) {
        if all.young.len() >= self.young_max && !all.young.contains_key(&key) {
            all.old = std::mem::take(&mut all.young);
        }
        all.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let cache: Cache<u32, u32> = Cache::new(4);
        let mut made = 0;
        for i in 0..100 {
            let _ = cache.get_or::<u32, ()>(&0, || {
                made += 1;
                Ok(0)
            });
            cache.put(i, i);
            let all = cache.generations.lock().expect("no panic");
            assert!(all.young.len() <= 4 && all.old.len() <= 4);
        }
        assert_eq!(made, 1, "what is asked for again and again is made once");
        assert_eq!(cache.get(&50), None);
        assert_eq!(cache.get(&99), Some(99));
        cache.remove(&99);
        assert_eq!(cache.get(&99), None);
        assert_eq!(cache.get_or::<u32, &str>(&500, || Err("no")), Err("no"));
    }
}
