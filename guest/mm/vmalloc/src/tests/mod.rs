mod areas;
mod examples;
mod kmap;
mod machine;
