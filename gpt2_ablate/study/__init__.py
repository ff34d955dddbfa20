"""The ablation, in the order in which data flows: `plan` (experiments/ -> runs), `runner` (runs -> records, each through
`run` in a process of its own, watched by `live`), `record` (what is kept of a run), `statistics` (records -> estimates with
intervals), `report` (all of it -> analysis.md, with `figures` and `prose`)."""
