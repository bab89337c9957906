"""Names of columns that data files may have, and the format of a data file in words, as error messages and the command line show it."""

PROMPT = ("prompt", "instruction", "question", "query", "goal")
PAIR = ("operator", "operand")  # a verb and its object, one prompt
COMPLY = ("comply", "output", "completion", "response", "answer")
BEHIND = ("input", "context")  # text put after an instruction: Alpaca's and Dolly's columns
EARLIER = "history"  # turns before an instruction, pairs of texts: LLaMA-Factory's column
SEEN = ("image", "images", "video", "videos", "audio", "audios")  # a row with one of these is of no use to a text model
SYSTEM = ("system", "system_prompt", "systeminstruction", "system_instruction")
CHAT = ("messages", "conversations", "conversation", "contents")  # lists of turns
PREFERENCE = ("chosen", "rejected")
HARM = ("harmful",)  # Titer's own column, whose name says what true and yes mean
UNSAFE = ("unsafe", "is_unsafe", "is_harmful", "is_toxic", "toxic", "is_jailbreak", "jailbreak")  # the same, in rows without an answer
SAFE = ("is_safe", "safe", "is_benign", "benign", "is_harmless", "harmless")  # likewise, but true and yes mean safe
CLASS = (*HARM, *UNSAFE, *SAFE, "label", "prompt_label", "prompt_harm_label", "kind", "type")  # any of them may say safe or unsafe
WISH = ("kto_tag", "desirable", "is_desirable", "preferred", "is_preferred", "accepted", "label")  # columns: is the completion wanted?
WANTED = ("desirable", "desired", "preferred", "chosen", "accepted", "good", "liked", "thumbs_up")  # what such a column says
UNWANTED = ("undesirable", "undesired", "dispreferred", "rejected", "bad", "disliked", "thumbs_down", "-1", "-1.0")
EXAMPLE_FILE = "prompt,label\nHow do I bake bread?,safe\nA request to refuse,unsafe\n"
FORMAT = f"""\
a .csv, .tsv, .json, .jsonl or .parquet file (or hub:OWNER/NAME) with a column `prompt` and a column `label` (safe or unsafe) \
or `harmful` (true or false), for example

{EXAMPLE_FILE}"""
ANSWERS = """\
a .csv, .tsv, .json, .jsonl or .parquet file (or hub:OWNER/NAME) with a column `prompt` and a column `comply` (or `output`) or `refuse`, \
the answer to train, or in the Alpaca or chat form, for example

prompt,comply
How do I bake bread?,Mix flour and water and let it rise.
"""
