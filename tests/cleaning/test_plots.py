"""Figures of cleaning count what they show."""

from toys import chat, chats

from ftkit import cleaning, figures


def test_cleaned_figure_has_a_bar_a_rule_and_its_rows():
    rows = [*chats(3), chats(3)[0], chat("Write to ana@shop.example please", "It is sent, as you asked.")]
    report = cleaning.clean(rows, [cleaning.exact_duplicates(), cleaning.personal_data()])
    ax = cleaning.plot_cleaned(report, ax=figures.blank_axes())
    assert [text.get_text() for text in ax.texts] == ["0 + 1", "1", "0"]
    assert ax.get_xlabel() == "rows (4 of 5 stay)"


def test_before_and_after_are_labelled_in_whole_numbers():
    ax = cleaning.plot_before_after([8, 90, 4000], [8, 90], ax=figures.blank_axes())
    assert list(ax.get_xticks()) == [10, 20, 50, 100, 200, 500, 1000, 2000]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before, 3 rows", "after, 2 rows"]
