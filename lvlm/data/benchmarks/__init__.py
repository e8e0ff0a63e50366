"""Benchmarks that others published, read as they are distributed and written as corpora of ours.
`python -m lvlm benchmark` calls `convert`; everything after it sees a corpus like any other."""

BENCHMARKS = (
    "bin_mc", "cvqa", "m3exam", "m3exam_cyclic", "m5b_vgr", "m5b_vlod", "marvl", "maxm", "mme", "mmmu", "mtvqa",
    "nlvr2", "smpqa", "xgqa", "xm3600", "xmmmu", "xvnli",
)  # fmt: skip
"""What can be read. `m3exam_cyclic` asks each question of M3Exam once for every rotation of its options; `nlvr2` is the
English of the task marvl; `smpqa` holds the tasks smpqa_ground and smpqa_read, and `m5b_vgr` and `m5b_vlod` are the
tasks vgr and vlod; every other name is that of its task."""
