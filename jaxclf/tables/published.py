"""The figures that the papers publish, as they print them; nothing here is ever taken for ours.

Source: Zhao et al. 2025, Table 3; Beiranvand et al. 2025 (AttEns), Tables 2 and 3.
"""

# Per cent of the test split: accuracy of classes and intent, seqeval F1 of slots. "dual": one model
# a task, "one": one model for both tasks of a data set.
ZHAO3_COLUMNS = (
    *("20class-dual", "7class-dual", "20class-one", "7class-one"),
    *("intent-dual", "slots-dual", "intent-one", "slots-one"),
)
ZHAO3: dict[str, tuple[float, ...]] = {
    "roberta-base": (86.7, 93.6, 86.5, 93.6, 88.9, 83.4, 89.1, 83.6),
    "roberta-large": (88.1, 94.2, 87.8, 94.6, 90.1, 85.0, 90.0, 84.7),
    "llama2-7b-five-shot-no-tuning": (0, 0, 0, 0, 35.8, 4.6, 7.2, 7.9),
    "llama2-7b-zero-shot-no-tuning": (25.1, 23.8, 11.4, 21.8, 30.3, 0, 0, 0),
    "llama2-70b-five-shot-no-tuning": (0, 0, 0, 0, 70.8, 9.5, 62.7, 5.1),
    "llama2-70b-zero-shot-no-tuning": (64.1, 44.9, 48.6, 62.7, 60.8, 0, 0, 0),
    "llama2-7b-five-shot-tuned": (88.2, 94.6, 88.1, 93.9, 90.3, 84.0, 89.8, 84.1),
    "llama2-7b-zero-shot-tuned": (89.5, 95.2, 89.2, 94.9, 90.4, 82.5, 89.6, 83.4),
    "llama2-70b-five-shot-tuned": (88.4, 95.3, 88.7, 94.6, 90.0, 83.9, 90.0, 84.3),
    "llama2-70b-zero-shot-tuned": (91.2, 96.3, 91.5, 96.6, 90.2, 83.1, 90.4, 83.6),
    "llama3-8b-five-shot-no-tuning": (0, 0, 0, 0, 69.7, 2.0, 38.9, 5.9),
    "llama3-8b-zero-shot-no-tuning": (52.2, 41.2, 34.1, 51.6, 61.7, 1.6, 0, 0),
    "llama3-70b-five-shot-no-tuning": (0, 0, 0, 0, 80.6, 20.6, 70.7, 16.4),
    "llama3-70b-zero-shot-no-tuning": (69.5, 67.0, 56.7, 78.0, 78.9, 12.2, 0, 0),
    "llama3-8b-five-shot-tuned": (91.1, 95.9, 91.0, 96.1, 90.6, 86.2, 89.7, 84.5),
    "llama3-8b-zero-shot-tuned": (91.6, 96.3, 90.8, 96.2, 90.6, 85.6, 90.0, 85.5),
    "llama3-70b-five-shot-tuned": (91.9, 96.5, 92.1, 96.8, 90.8, 86.0, 90.2, 86.8),
    "llama3-70b-zero-shot-tuned": (91.5, 96.1, 91.2, 96.2, 90.8, 85.8, 89.8, 86.3),
    "gpt35-five-shot": (0, 0, 0, 0, 64.0, 2.0, 73.6, 21.0),
    "gpt35-zero-shot": (72.9, 55.1, 62.3, 69.6, 60.7, 1.8, 69.6, 14.2),
    "gpt4-five-shot": (0, 0, 0, 0, 83.3, 37.1, 79.9, 28.1),
    "gpt4-zero-shot": (80.4, 74.5, 80.6, 88.5, 81.9, 13.6, 76.9, 21.6),
    "gpt4o-five-shot": (0, 0, 0, 0, 82.0, 18.9, 81.0, 39.4),
    "gpt4o-zero-shot": (77.4, 73.3, 73.6, 84.1, 62.7, 14.8, 0, 0),
}

# Shares of GLUE's dev split: accuracy, Matthews' correlation of CoLA.
ATTENS2_COLUMNS = ("wnli", "qqp", "mrpc", "rte", "mnli-mm", "mnli", "qnli", "cola", "sst2")
ATTENS2: dict[str, dict[str, tuple[float, ...]]] = {
    "distilbert": {
        "Model": (0.5493, 0.3771, 0.3161, 0.4729, 0.3267, 0.3178, 0.4794, 0.0000, 0.4908),
        "FFN": (0.4366, 0.7648, 0.7107, 0.5523, 0.5288, 0.5238, 0.6908, 0.1458, 0.8337),
        "FT_LoRA": (0.4366, 0.8432, 0.6838, 0.4440, 0.7389, 0.7426, 0.7426, 0.0000, 0.9162),
        "AttEns": (0.6447, 0.8544, 0.8014, 0.6642, 0.7610, 0.7523, 0.8473, 0.3952, 0.8933),
    },
    "bert-base": {
        "Model": (0.5633, 0.6066, 0.6789, 0.5090, 0.3302, 0.3226, 0.4880, 0.0950, 0.5149),
        "FFN": (0.3802, 0.7600, 0.6985, 0.5956, 0.5372, 0.5294, 0.6847, 0.3084, 0.8589),
        "FT_LoRA": (0.5774, 0.8615, 0.7009, 0.5848, 0.8087, 0.7940, 0.8813, 0.4993, 0.9082),
        "AttEns": (0.5633, 0.8654, 0.8186, 0.6714, 0.8102, 0.8007, 0.8795, 0.4988, 0.9105),
    },
    "electra-small": {
        "Model": (0.5915, 0.4742, 0.3137, 0.5270, 0.3303, 0.3216, 0.5249, 0.0104, 0.4988),
        "FFN": (0.5774, 0.7542, 0.7132, 0.5523, 0.4869, 0.4787, 0.7100, 0.3268, 0.6938),
        "FT_LoRA": (0.5633, 0.8362, 0.7377, 0.5631, 0.7823, 0.7671, 0.8504, 0.3463, 0.8772),
        "AttEns": (0.5774, 0.8396, 0.8235, 0.6787, 0.7870, 0.7708, 0.8533, 0.5312, 0.8853),
    },
    "electra-base": {
        "Model": (0.3943, 0.3604, 0.6838, 0.5018, 0.3585, 0.3532, 0.4946, 0.0200, 0.5080),
        "FFN": (0.4788, 0.8000, 0.7436, 0.5956, 0.6472, 0.6320, 0.7810, 0.5208, 0.8337),
        "FT_LoRA": (0.4084, 0.8822, 0.8431, 0.7003, 0.8647, 0.8607, 0.9203, 0.6012, 0.9288),
        "AttEns": (0.5774, 0.8825, 0.8627, 0.7689, 0.8651, 0.8632, 0.9211, 0.6362, 0.9369),
    },
}

# Shares: Pearson's correlation of STS-B, accuracy. BERT-base, targets outside the nine modules.
ATTENS3_COLUMNS = ("stsb", "imdb", "ag_news", "trec")
ATTENS3: dict[str, tuple[float | None, ...]] = {
    "Model": (-0.0608, 0.4956, 0.2505, 0.0180),
    "FFN": (0.2247, 0.8405, 0.8942, 0.7666),
    "FT_LoRA": (None, 0.8789, None, None),
    "AttEns": (0.4158, 0.9397, 0.9107, 0.8220),
}
