"""Pictures of models: the one hand that draws them, the work of several processes,
and the forms they are left in.
"""
