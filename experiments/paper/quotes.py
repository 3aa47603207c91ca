"""What section 8 of the paper prints: its Table 1, and every sentence of 8.2 and 8.3 that asserts something, word for
word.

The table is quoted for comparison alone: the paper names no data, no sizes, no seeds and no hardware behind it.
"""

TABLE = {
    ("time series", "selective"): (92.1, 250),
    ("time series", "lstm"): (90.3, 400),
    ("time series", "gru"): (89.7, 370),
    ("language", "selective"): (85.6, 210),
    ("language", "lstm"): (82.5, 360),
    ("language", "gru"): (83.0, 340),
    ("signals", "selective"): (88.4, 230),
    ("signals", "lstm"): (86.1, 390),
    ("signals", "gru"): (87.0, 370),
}  # prediction accuracy (%), memory usage (MB)
LABEL = "the paper, reported without data or sizes"
# The smallest saving of its own table that the paper calls significant: 250 MB for 370 MB.
SAVING = max(
    TABLE[family, "selective"][1] / megabytes
    for (family, model), (_, megabytes) in TABLE.items()
    if model != "selective"
)

SUMMARY = "The results of our simulations are summarized in Tables 1 and Figures 1."
CONSISTENT = (
    "Selective SSMs consistently outperform traditional RNN-based architectures across a variety of tasks, "
    "particularly in terms of memory efficiency and scalability for long sequences."
)
SUPERIOR = (
    "As shown in Table 1, selective SSMs achieve superior accuracy while using significantly less memory compared to "
    "traditional RNN-based models."
)
PRONOUNCED = (
    "This improvement is especially pronounced in the time-series and NLP tasks, where long sequences necessitate "
    "effective memory compression to avoid performance degradation."
)
ROBUST = "Selective SSMs show robust performance, particularly on tasks requiring long-range dependency modelling."
SAVINGS = "Table 1 highlights the significant memory savings achieved by selective SSMs."
REDUCED = (
    "The reduced dimensionality of the hidden state results in lower memory usage while maintaining or even improving "
    "predictive performance."
)
QUADRATIC = (
    "Transformers, however, often suffer from quadratic memory complexity with respect to sequence length, while "
    "selective SSMs maintain linear complexity due to selective gating."
)
CONVOLUTIONS = (
    "While TCNs can efficiently capture local patterns, they struggle to model long-range dependencies as effectively "
    "as selective SSMs, especially when memory compression is critical."
)
COMPARABLE = (
    "Selective SSMs outperform these models in terms of memory efficiency for long sequences, while providing "
    "comparable or better accuracy in tasks that require long-range dependency modelling."
)
FLEXIBLE = (
    "The dynamic gating mechanism provides a level of flexibility that allows SSMs to adapt to varying levels of "
    "complexity in the input sequence, giving them an edge in terms of computational efficiency compared to "
    "transformer-based models, which scale poorly with sequence length."
)
