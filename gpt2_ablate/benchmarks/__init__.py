"""What `gpt2-ablate bench` measures, a file for each question. Every function runs in a process of its own, tells its
progress, and returns plain numbers; `gpt2_ablate.benchmarks.run` calls them and writes the report."""
