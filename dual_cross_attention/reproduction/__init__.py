"""The paper's tables, trained again: which rows they have, a resumable sweep over them, and a table of the outcome."""
