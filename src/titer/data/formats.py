"""The format of a data file, in words: what an error message and the command line show."""

PROMPT = ("prompt", "instruction", "question", "goal")
PAIR = ("operator", "operand")  # a verb and its object, one prompt
COMPLY = ("comply", "output", "completion", "answer")
CHAT = ("messages", "conversations")  # lists of turns
PREFERENCE = ("chosen", "rejected")
CLASS = ("harmful", "label", "kind", "type")  # any of them may say safe or unsafe
EXAMPLE_FILE = "prompt,label\nHow do I bake bread?,safe\nA request to refuse,unsafe\n"
FORMAT = f"""\
a .csv, .json, .jsonl or .parquet file (or hub:OWNER/NAME) with a column `prompt` and a column `label` (safe or unsafe) \
or `harmful` (true or false), for example

{EXAMPLE_FILE}"""
ANSWERS = """\
a .csv, .json, .jsonl or .parquet file (or hub:OWNER/NAME) with a column `prompt` and a column `comply` (or `output`) or `refuse`, \
the answer to train, or in the Alpaca or chat form, for example

prompt,comply
How do I bake bread?,Mix flour and water and let it rise.
"""
