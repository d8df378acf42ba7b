//! Converts JSON to CEL values.

use std::{borrow::Cow, collections::HashMap, fmt};

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Maximum number of values read from a record: each needs far more memory than its text.
const MAX_VALUES: usize = 100_000;

type Any = Box<dyn Val>;

/// Reads the members of an object. Returns `None` if they contain too many values, or one without a
/// CEL equivalent: a lone surrogate, a number out of range, more than 127 levels.
pub(super) fn object(members: HashMap<Cow<'_, str>, &str>) -> Option<Any> {
    let mut left = MAX_VALUES;
    let mut object = HashMap::with_capacity(members.len());
    for (key, text) in members {
        let mut json = serde_json::Deserializer::from_str(text);
        let value = Seed(&mut left).deserialize(&mut json).ok()?;
        object.insert(CelMapKey::from(key.into_owned()), value);
    }
    Some(Box::new(CelMap::from(object)))
}

/// Number of values that can still be read.
struct Seed<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Any;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Any, D::Error> {
        *self.0 = self.0.checked_sub(1).ok_or_else(|| D::Error::custom("too many values"))?;
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Any, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Any, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Any, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    /// A whole number becomes an `int` if it fits, as a literal in an expression does.
    fn visit_u64<E: Error>(self, value: u64) -> Result<Any, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Any, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Any, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Any, E> {
        Ok(Box::new(CelString::from(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Any, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = elements.next_element_seed(Seed(self.0))? {
            list.push(value);
        }
        Ok(Box::new(CelList::from(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Any, A::Error> {
        let mut map = HashMap::new();
        while let Some(key) = members.next_key::<String>()? {
            map.insert(CelMapKey::from(key), members.next_value_seed(Seed(self.0))?);
        }
        Ok(Box::new(CelMap::from(map)))
    }
}
