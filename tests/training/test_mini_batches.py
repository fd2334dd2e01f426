from __future__ import annotations

import torch

from st_llm_embed.training.loss import cut, cut_to, known_positives, length_sorted, text_hashes


def test_mini_batches_are_as_wide_as_their_longest_text_and_within_the_budget() -> None:
    assert cut([9, 5, 5, 4, 1, 1, 1], 10) == [(0, 1), (1, 3), (3, 5), (5, 7)]
    assert cut([30, 20, 2], 10) == [(0, 1), (1, 2), (2, 3)]
    assert cut([3] * 7, 6) == [(0, 2), (2, 4), (4, 6), (6, 7)]


def test_more_mini_batches_are_made_of_the_largest_ones() -> None:
    lengths = [9, 5, 5, 4, 1, 1, 1]
    assert cut_to([(0, 1), (1, 3), (3, 7)], lengths, 3) == [(0, 1), (1, 3), (3, 7)]
    assert cut_to([(0, 1), (1, 3), (3, 7)], lengths, 4) == [(0, 1), (1, 3), (3, 5), (5, 7)]
    assert cut_to([(0, 1), (1, 3), (3, 7)], lengths, 99) == [(place, place + 1) for place in range(7)]


def test_texts_are_trimmed_and_their_places_told() -> None:
    """Padding on either side, and in the middle as where columns of left padding were joined."""
    ids = torch.tensor([[5, 6, 0, 0], [0, 0, 0, 7], [0, 8, 9, 0], [1, 2, 3, 4], [0, 3, 0, 0]])
    pool = {"input_ids": ids, "attention_mask": (ids > 0).long(), "row": torch.arange(5), "modality": "text"}
    mini_batches, place = length_sorted(pool, 4)
    assert [mini_batch["input_ids"].tolist() for mini_batch in mini_batches] == [
        [[1, 2, 3, 4]],
        [[5, 6], [8, 9]],
        [[7], [3]],
    ]
    assert [mini_batch["modality"] for mini_batch in mini_batches] == ["text"] * 3
    assert all(mini_batch["attention_mask"].all() for mini_batch in mini_batches)
    assert torch.cat([mini_batch["row"] for mini_batch in mini_batches])[place].tolist() == list(range(5))


def test_equal_texts_have_equal_hashes_whatever_the_padding() -> None:
    left = {"input_ids": torch.tensor([[0, 5, 6], [5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    right = {"input_ids": torch.tensor([[5, 6], [6, 5]]), "attention_mask": torch.tensor([[1, 1], [1, 1]])}
    flat = {"input_ids": torch.tensor([[5, 6, 5, 6, 7]]), "cu_seq_lens_q": torch.tensor([0, 2, 5], dtype=torch.int32)}
    hashes = text_hashes([left, right, flat])
    assert hashes.shape == (2, 3)
    assert hashes[0, 0] == hashes[0, 1] == hashes[0, 2]
    assert hashes[1, 0] == hashes[1, 2] != hashes[1, 1]
    assert len(set(hashes.flatten().tolist())) == 3


def test_what_the_texts_show_to_be_no_negative() -> None:
    hashes = torch.tensor(
        [
            # anchor, positive, negative, negative
            [1, 10, 20, 21],
            [2, 11, 10, 22],  # its negative is the first row's positive
            [1, 12, 23, 24],  # the first row's anchor
            [3, 10, 25, 25],  # the first row's positive; its negative twice
            [4, 13, 13, 4],  # its own positive and anchor as negatives
        ]
    )
    anchors, documents = known_positives(hashes, torch.tensor([0, 3, 4]))
    assert anchors.int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    positives, first, second = (part.int().tolist() for part in documents.chunk(3, dim=1))
    assert positives == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert first == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert second == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
