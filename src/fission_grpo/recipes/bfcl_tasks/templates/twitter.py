"""Templates for TwitterAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import NAMES, Sandbox, Template, UserRequest, choice, one_call

# phrases are wrapped by hand
# fmt: off
TEXTS = (
    "fresh bread today", "long walk home", "new song is out", "match tonight", "garden in bloom", "library reopened",
)
TAGS = ("#food", "#city", "#music", "#sport", "#green", "#books")


def config(rng: random.Random) -> dict[str, Any]:
    """A user who follows two people, and a few tweets."""
    user, *others = (name.lower() for name in rng.sample(NAMES, 5))
    first = rng.randint(10, 900)
    tweets = {}
    for id_ in range(first, first + rng.randint(2, 4)):
        text = {"content": rng.choice(TEXTS), "tags": [rng.choice(TAGS)], "mentions": []}
        tweets[str(id_)] = {"id": id_, "username": rng.choice([user, *others]), **text}
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


def a_tweet(t: Sandbox) -> int:
    return t.pick(sorted(t.instance("TwitterAPI").tweets))


def a_new_user(t: Sandbox) -> str:
    followed = t.instance("TwitterAPI").following_list
    return t.pick([name.lower() for name in NAMES if name.lower() not in followed])


def log_in(t: Sandbox) -> UserRequest:
    state = t.instance("TwitterAPI")
    t.require(not state.authenticated)
    t.do("authenticate_twitter", username=state.username, password=state.password)
    return t.ask(
        "Log in to twitter as {username} with password {password}.", "Sign in: {username}, {password}.",
        vague="Log in to twitter as {username}.", detail="The password is {password}.",
    )


def post(t: Sandbox) -> UserRequest:
    text = t.pick(TEXTS)
    if t.rng.random() < 0.5:
        t.do("post_tweet", content=text)
        return t.ask("Tweet '{content}'.", "Post '{content}'.", vague="Post a tweet.", detail="It says '{content}'.")
    tag = t.pick(TAGS)
    t.do("post_tweet", content=text, tags=[tag])
    return t.ask("Tweet '{content}' with the tag {tag}.", "Post '{content}', tagged {tag}.", tag=tag)


def post_and_mention(t: Sandbox) -> UserRequest:
    text, user = t.pick(TEXTS), t.pick(NAMES).lower()
    tweet = t.do("post_tweet", content=text)
    t.do("mention", tweet_id=tweet["id"], mentioned_usernames=[user])
    return t.ask(
        "Tweet '{content}' and then mention {user} in it.", "Post '{content}', then mention {user} there.", user=user,
    )


def by_user(t: Sandbox) -> UserRequest:
    user = t.instance("TwitterAPI").tweets[a_tweet(t)]["username"]
    function = t.pick(("get_user_tweets", "get_user_stats"))
    t.do(function, username=user)
    if function == "get_user_stats":
        return t.ask("Give me the stats of {username}.", "How active is {username}?")
    return t.ask("List the tweets of {username}.", "What has {username} tweeted?")


TEMPLATES: tuple[Template, ...] = (
    log_in,
    post,
    post_and_mention,
    one_call("retweet", "Retweet {tweet_id}.", "Share tweet {tweet_id}.",
             vague="Retweet that tweet.", detail="Number {tweet_id}.", tweet_id=a_tweet),
    one_call("comment", "Comment '{comment_content}' on tweet {tweet_id}.",
             "Reply '{comment_content}' to tweet {tweet_id}.", tweet_id=a_tweet, comment_content=choice(TEXTS)),
    one_call("follow_user", "Follow {username_to_follow}.", "Please follow {username_to_follow}.",
             vague="Follow somebody new.", detail="I mean {username_to_follow}.", username_to_follow=a_new_user),
    one_call("unfollow_user", "Unfollow {username_to_unfollow}.", "Stop following {username_to_unfollow}.",
             username_to_unfollow=lambda t: t.pick(t.instance("TwitterAPI").following_list)),
    one_call("get_tweet", "Show tweet {tweet_id}.", "What does tweet {tweet_id} say?", tweet_id=a_tweet),
    by_user,
    one_call("search_tweets", "Search tweets for '{keyword}'.", "Find tweets about '{keyword}'.",
             keyword=lambda t: t.pick(TEXTS).split()[-1]),
    one_call("list_all_following", "Whom do I follow?", "List everyone I follow."),
)
