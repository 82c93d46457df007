"""Templates for TwitterAPI."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, any_call, choice_from, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import NAMES, a_user

# fmt: off
TEXTS = (
    "fresh bread today", "long walk home", "new song is out", "match tonight", "garden in bloom", "library reopened",
)
TAGS = ("#food", "#city", "#music", "#sport", "#green", "#books")


def config(rng: Random) -> dict[str, object]:
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


a_tweet = choice_from("TwitterAPI", lambda api: sorted(api.tweets))
followed = choice_from("TwitterAPI", lambda api: api.following_list)
not_followed = choice_from(
    "TwitterAPI", lambda api: [name.lower() for name in NAMES if name.lower() not in api.following_list]
)


def log_in(t: Sandbox) -> UserRequest:
    state = t.instance("TwitterAPI")
    t.require(not state.authenticated)
    t.do("authenticate_twitter", username=state.username, password=state.password)
    return t.request("Log in to twitter as {username} with password {password}.", "Sign in: {username}, {password}.",
                     vague="Log in to twitter as {username}.", detail="The password is {password}.")


def post(t: Sandbox) -> UserRequest:
    text = t.pick(TEXTS)
    if t.rng.random() < 0.5:
        t.do("post_tweet", content=text)
        return t.request("Tweet '{content}'.", "Post '{content}'.",
                         vague="Post a tweet.", detail="It says '{content}'.")
    t.do("post_tweet", content=text, tags=[t.pick(TAGS)])
    return t.request("Tweet '{content}' with the tag {tags}.", "Post '{content}', tagged {tags}.")


def post_and_mention(t: Sandbox) -> UserRequest:
    text, user = t.pick(TEXTS), a_user(t)
    tweet = t.do("post_tweet", content=text)
    t.do("mention", tweet_id=tweet["id"], mentioned_usernames=[user])
    return t.request("Tweet '{content}' and then mention {mentioned_usernames} in it.",
                     "Post '{content}', then mention {mentioned_usernames} there.")


def a_writer(t: Sandbox) -> str:
    return t.instance("TwitterAPI").tweets[a_tweet(t)]["username"]


ACTIVITY = {
    "get_user_tweets": ("List the tweets of {username}.", "What has {username} tweeted?"),
    "get_user_stats": ("Give me the stats of {username}.", "How active is {username}?"),
}
TEMPLATES = (
    log_in,
    post,
    post_and_mention,
    one_call("retweet", "Retweet {tweet_id}.", "Share tweet {tweet_id}.",
             vague="Retweet that tweet.", detail="Number {tweet_id}.", tweet_id=a_tweet),
    one_call("comment", "Comment '{comment_content}' on tweet {tweet_id}.",
             "Reply '{comment_content}' to tweet {tweet_id}.",
             tweet_id=a_tweet, comment_content=lambda t: t.pick(TEXTS)),
    one_call("follow_user", "Follow {username_to_follow}.", "Please follow {username_to_follow}.",
             vague="Follow somebody new.", detail="I mean {username_to_follow}.", username_to_follow=not_followed),
    one_call("unfollow_user", "Unfollow {username_to_unfollow}.", "Stop following {username_to_unfollow}.",
             username_to_unfollow=followed),
    one_call("get_tweet", "Show tweet {tweet_id}.", "What does tweet {tweet_id} say?", tweet_id=a_tweet),
    any_call(ACTIVITY, username=a_writer),
    one_call("search_tweets", "Search tweets for '{keyword}'.", "Find tweets about '{keyword}'.",
             keyword=lambda t: t.pick(TEXTS).split()[-1]),
    one_call("list_all_following", "Whom do I follow?", "List everyone I follow."),
)
