"""Two questions about one picture, in Chinese and in English: the shortest way to a first answer.

python examples/first_answer.py
"""

from pathlib import Path

PICTURE = Path(__file__).parent / "cat.png"


def main() -> None:
    print("Loading torch and visglm-tiny, the model that comes with the package …", flush=True)
    from visglm import VisGLM

    vlm = VisGLM.from_pretrained()

    print(f"\nAsking about {PICTURE}\n")
    reply = vlm.chat(PICTURE, "这是什么？")
    print("问：这是什么？")
    print(f"答：{reply}\n")

    print("Q: What colour is it?")
    print("A: ", end="", flush=True)
    for piece in vlm.stream_chat(PICTURE, "What colour is it?"):  # word by word
        print(piece, end="", flush=True)
    print(f"\n\nThe first answer took {reply.timings.encode + reply.timings.total:.2f} s on {vlm.device}.")


if __name__ == "__main__":
    main()
