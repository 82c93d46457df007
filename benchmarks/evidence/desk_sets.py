def desk_plays(name, count, seed):
    raise NotImplementedError
