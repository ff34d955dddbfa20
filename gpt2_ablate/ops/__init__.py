"""How attention, products and losses are computed; torch only, and nothing here knows what a GPT-2 is.

`mask` says which keys a query sees, `attention` dispatches to the kernels (`causal`, `flex`, `sliding`, and `eager`, the
definition that they are tested against; `cpu` is what they share); `cross_entropy`, `linear`, `embedding` and `gemv` are
products that save memory or time; `precision` is what autocast does to them.
"""
