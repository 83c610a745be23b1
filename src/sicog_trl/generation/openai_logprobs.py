"""Log-probabilities from a server: whether they are the model's own."""

from .openai_client import PROBE, OpenAIServer, UnansweredError


_TEMPERATURES = (0.5, 2.0)  # ours: far apart, so that a server that counts the temperature in gives itself away
_MOST_APART = 0.1  # ours: nats; more than two batches in half precision differ by
_OWN = (
    "Start it so that it gives the model's own (vLLM: `--logprobs-mode raw_logprobs`, its default; SGLang: "
    "`SGLANG_RETURN_ORIGINAL_LOGPROB=1`), or leave logprobs out"
)


async def check_logprobs(server: OpenAIServer) -> None:
    """
    Refuse a server that gives no log-probabilities, or those of a distribution that the temperature has changed.

    The likeliest first token is asked for at two temperatures: its own log-probability is the same at both.
    """
    found = []
    for temperature in _TEMPERATURES:
        settings = {"temperature": temperature, "top_p": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": 1}
        try:
            completion = await server.complete([{"type": "text", "text": PROBE}], 1, **settings)
            found.append(completion.choices[0].logprobs.content[0].top_logprobs[0].logprob)
        except UnansweredError as error:
            raise _without(server, str(error)) from None
        except (AttributeError, IndexError, TypeError):
            raise _without(server, "it leaves them out of its answer") from None
    if abs(found[0] - found[1]) > _MOST_APART:
        raise RuntimeError(
            f"{server.base_url} counts the temperature into its log-probabilities: that of one token is "
            f"{found[0]:.3f} at {_TEMPERATURES[0]} and {found[1]:.3f} at {_TEMPERATURES[1]}. {_OWN}"
        )


def _without(server: OpenAIServer, why: str) -> RuntimeError:
    return RuntimeError(f"{server.base_url} gives no log-probabilities for {server.model!r}: {why}. {_OWN}")
