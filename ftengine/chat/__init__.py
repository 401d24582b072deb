"""Conversations: chat templates, turns, calls of tools, thoughts; which tokens train, and what a server is asked.

Everything here is open to plugins. Names are imported when first used: what reads rows and chats needs no torch.
"""

from typing import TYPE_CHECKING

from ftengine import lazy_attributes

if TYPE_CHECKING:
    from ftengine.chat.answers import read_answer
    from ftengine.chat.command_options import endpoint_options
    from ftengine.chat.conversation import read_conversation, with_system
    from ftengine.chat.endpoint import Endpoint, NoAnswer
    from ftengine.chat.reply import Reply
    from ftengine.chat.template import has_template, render
    from ftengine.chat.turn_ends import end_tokens, stop_tokens
    from ftengine.chat.turns import encode_conversation

_HOMES = {
    "ftengine.chat.answers": "read_answer",
    "ftengine.chat.command_options": "endpoint_options",
    "ftengine.chat.conversation": "read_conversation with_system",
    "ftengine.chat.endpoint": "Endpoint NoAnswer",
    "ftengine.chat.reply": "Reply",
    "ftengine.chat.template": "has_template render",
    "ftengine.chat.turn_ends": "end_tokens stop_tokens",
    "ftengine.chat.turns": "encode_conversation",
}

__all__, __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
