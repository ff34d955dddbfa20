"""The ablation, in the order in which data flows: `schemas` and `variants` (YAML -> what is asked for), `plan` (-> runs),
`runner` (runs -> records, each by `worker` in a process of its own, shown by `live`)."""
