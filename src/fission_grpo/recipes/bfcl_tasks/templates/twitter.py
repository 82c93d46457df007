"""TwitterAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    Intent,
    Request,
    Trial,
)

TEXTS = (
    "fresh bread today",
    "long walk home",
    "new song is out",
    "match tonight",
    "garden in bloom",
    "library reopened",
)


TAGS = ("#food", "#city", "#music", "#sport", "#green", "#books")


def config(rng: random.Random) -> dict[str, Any]:
    """A few tweets, a few people followed."""
    user, *others = (name.lower() for name in rng.sample(NAMES, 5))
    first = rng.randint(10, 900)
    tweets = {}
    for number in range(rng.randint(2, 4)):
        text = {"content": rng.choice(TEXTS), "tags": [rng.choice(TAGS)], "mentions": []}
        tweets[str(first + number)] = {"id": first + number, "username": rng.choice([user, *others]), **text}
    return {
        "username": user,
        "password": f"pw{rng.randint(100, 999)}",
        "authenticated": rng.random() < 0.8,
        "tweets": tweets,
        "comments": {},
        "retweets": {},
        "following_list": others[:2],
        "tweet_counter": first + len(tweets),
    }


def _tweet(t: Trial) -> int:
    return t.pick(sorted(t.state("TwitterAPI").tweets))


def log_in(t: Trial) -> Request:
    state = t.state("TwitterAPI")
    if state.authenticated:
        t.pick(())
    t.do("authenticate_twitter", username=state.username, password=state.password)
    return t.ask(
        "Log in to twitter as {user} with password {password}.",
        "Sign in: {user}, {password}.",
        vague="Log in to twitter as {user}.",
        detail="The password is {password}.",
        user=state.username,
        password=state.password,
    )


def post(t: Trial) -> Request:
    text = t.pick(TEXTS)
    if t.rng.random() < 0.5:
        t.do("post_tweet", content=text)
        return t.ask("Tweet '{text}'.", "Post '{text}'.", vague="Post a tweet.", detail="It says '{text}'.", text=text)
    tag = t.pick(TAGS)
    t.do("post_tweet", content=text, tags=[tag])
    return t.ask("Tweet '{text}' with the tag {tag}.", "Post '{text}', tagged {tag}.", text=text, tag=tag)


def post_and_mention(t: Trial) -> Request:
    text, user = t.pick(TEXTS), t.pick(NAMES).lower()
    number = t.do("post_tweet", content=text)["id"]
    t.do("mention", tweet_id=number, mentioned_usernames=[user])
    return t.ask(
        "Tweet '{text}' and then mention {user} in it.",
        "Post '{text}', then mention {user} there.",
        text=text,
        user=user,
    )


def share(t: Trial) -> Request:
    number = _tweet(t)
    t.do("retweet", tweet_id=number)
    return t.ask("Retweet {id}.", "Share tweet {id}.", vague="Retweet that tweet.", detail="Number {id}.", id=number)


def comment(t: Trial) -> Request:
    number, text = _tweet(t), t.pick(TEXTS)
    t.do("comment", tweet_id=number, comment_content=text)
    return t.ask("Comment '{text}' on tweet {id}.", "Reply '{text}' to tweet {id}.", text=text, id=number)


def follow(t: Trial) -> Request:
    known = t.state("TwitterAPI").following_list
    user = t.pick([name.lower() for name in NAMES if name.lower() not in known])
    t.do("follow_user", username_to_follow=user)
    return t.ask(
        "Follow {user}.", "Please follow {user}.", vague="Follow somebody new.", detail="I mean {user}.", user=user
    )


def unfollow(t: Trial) -> Request:
    user = t.pick(t.state("TwitterAPI").following_list)
    t.do("unfollow_user", username_to_unfollow=user)
    return t.ask("Unfollow {user}.", "Stop following {user}.", user=user)


def read(t: Trial) -> Request:
    number = _tweet(t)
    t.do("get_tweet", tweet_id=number)
    return t.ask("Show tweet {id}.", "What does tweet {id} say?", id=number)


def by_user(t: Trial) -> Request:
    user = t.state("TwitterAPI").tweets[_tweet(t)]["username"]
    name = t.pick(("get_user_tweets", "get_user_stats"))
    t.do(name, username=user)
    if name == "get_user_stats":
        return t.ask("Give me the stats of {user}.", "How active is {user}?", user=user)
    return t.ask("List the tweets of {user}.", "What has {user} tweeted?", user=user)


def search(t: Trial) -> Request:
    word = t.pick(TEXTS).split()[-1]
    t.do("search_tweets", keyword=word)
    return t.ask("Search tweets for '{word}'.", "Find tweets about '{word}'.", word=word)


def following(t: Trial) -> Request:
    t.do("list_all_following")
    return t.ask("Whom do I follow?", "List everyone I follow.")


INTENTS: tuple[Intent, ...] = (
    log_in,
    post,
    post_and_mention,
    share,
    comment,
    follow,
    unfollow,
    read,
    by_user,
    search,
    following,
)
